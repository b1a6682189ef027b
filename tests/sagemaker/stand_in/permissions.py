"""Who may do what: denied actions, refused credentials, unreachable services, throttled operations; IAM's simulation.

Everything is allowed until a test says otherwise: it denies actions by name, or gives somebody a policy, which only the
simulation uses. The calls themselves are not checked against policies.
"""

from __future__ import annotations

import fnmatch
import threading
from collections import Counter
from xml.sax.saxutils import escape

from . import policies
from .calls import Call
from .protocol import ServiceError
from .server import Reply

REFUSALS = {
    # what is wrong: code in JSON services, code elsewhere; the message is the same but for the last word
    "invalid": ("UnrecognizedClientException", "InvalidClientTokenId"),
    "expired": ("ExpiredTokenException", "ExpiredToken"),
}
QUERY_SERVICES = ("iam", "sts", "ec2", "s3")


class Permissions:
    """Who may do what in the account, and which parts of AWS answer at all."""

    def __init__(self, caller_arn: str, account: str) -> None:
        self.caller_arn, self.account = caller_arn, account
        self.roles_of_keys: dict[str, str] = {}
        """The containers' access keys, and the names of their roles."""
        self.unreachable: set[str] = set()
        """Services (`pricing`, `sagemaker`, ...) whose connections are dropped without an answer."""
        self.refused = ""
        """Why no credentials are accepted: `invalid` or `expired`; empty if they are."""
        self.owners: dict[str, str] = {}
        """Buckets in other accounts, which let everybody in unless the request names an expected owner."""
        self.policies: dict[str, policies.Policy] = {}
        """Role (empty for the person who submits) -> the policy that the simulation uses."""
        self._denied: list[tuple[str, str]] = []
        self._throttled: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def deny(self, action: str, role: str = "") -> None:
        """Deny an action, such as `s3:GetObject` or `s3:*`, to a role or to the person who submits."""
        self._denied.append((role, action.lower()))

    def allow_all(self) -> None:
        """Remove all denials."""
        self._denied.clear()

    def allows(self, action: str, role: str = "") -> bool:
        """Whether a role, or the person who submits, may do something."""
        return not any(role == whom and fnmatch.fnmatch(action.lower(), what) for whom, what in self._denied)

    def throttle(self, operation: str, every: int) -> None:
        """Refuse every n-th call of an operation from now on; 0 refuses none."""
        with self._lock:
            self._throttled[operation] = every
            self._counts[operation] = 0

    def check(self, call: Call) -> None:
        """Let a call pass, or not.

        Raises:
            ServiceError: what AWS answers.
            ConnectionError: nothing answers.
        """
        call.caller = self.roles_of_keys.get(call.access_key, "")
        if call.service in self.unreachable:
            raise ConnectionError(call.service)
        if self.refused and not call.caller:
            json_code, code = REFUSALS[self.refused]
            message = f"The security token included in the request is {self.refused}"
            raise ServiceError(code if call.service in QUERY_SERVICES else json_code, message, 403)
        self.require(call.action, call.caller, call.service)
        owner = self.owners.get(call.parameters.get("Bucket", ""), self.account)
        if call.expected_owner not in ("", owner):
            raise ServiceError("AccessDenied", "Access Denied", 403)
        every = self._throttled.get(call.operation, 0)
        if every:
            with self._lock:
                self._counts[call.operation] += 1
                if self._counts[call.operation] % every == 0:
                    raise ServiceError("ThrottlingException", "Rate exceeded")

    def require(self, action: str, role: str = "", service: str = "sagemaker", resource: str = "*") -> None:
        """Raise AWS's refusal if the action is denied."""
        if self.allows(action, role):
            return
        codes = {"ec2": "UnauthorizedOperation"} | dict.fromkeys(("iam", "sts", "s3"), "AccessDenied")
        arn = f"arn:aws:sts::{self.account}:assumed-role/{role}/SageMaker" if role else self.caller_arn
        message = (
            f"User: {arn} is not authorized to perform: {action} on resource: {resource} because no identity-based "
            f"policy allows the {action} action"
        )
        raise ServiceError(
            codes.get(service, "AccessDeniedException"), message, 403 if service in QUERY_SERVICES else 400
        )

    def simulate(self, call: Call, environ: dict[str, object]) -> Reply:
        """SimulatePrincipalPolicy: what the role or user of the given ARN may do with each of the resources."""
        form = call.parameters
        source = form.get("PolicySourceArn", "")
        role = source.rpartition("/")[2] if ":role/" in source else ""
        actions = [value for name, value in form.items() if name.startswith("ActionNames.member.")]
        resources = [value for name, value in form.items() if name.startswith("ResourceArns.member.")] or ["*"]
        entries = [
            (value, form[name.replace("ContextKeyName", "ContextKeyValues.member.1")])
            for name, value in form.items()
            if name.endswith(".ContextKeyName")
        ]
        members = "".join(
            f"<member><EvalActionName>{escape(action)}</EvalActionName><EvalResourceName>{escape(resource)}"
            f"</EvalResourceName><EvalDecision>{self._decision(role, action, resource, dict(entries))}"
            "</EvalDecision><MatchedStatements/><MissingContextValues/></member>"
            for action in actions
            for resource in resources
        )
        space = 'xmlns="https://iam.amazonaws.com/doc/2010-05-08/"'
        text = (
            f"<SimulatePrincipalPolicyResponse {space}><SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated>"
            f"<EvaluationResults>{members}</EvaluationResults></SimulatePrincipalPolicyResult>"
            "<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></SimulatePrincipalPolicyResponse>"
        )
        return Reply(text.encode(), "text/xml")

    def _decision(self, role: str, action: str, resource: str, context: dict[str, str]) -> str:
        policy = self.policies.get(role)
        granted = policy is None or policies.allows(policy, action, resource, context)
        return "allowed" if granted and self.allows(action, role) else "implicitDeny"
