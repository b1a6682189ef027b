"""The price of an instance per hour: from AWS's price list if it is reachable, otherwise from a dated table."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from datetime import date
from pathlib import Path
from typing import Literal

import yaml

from runner import HOME
from runner.aws.account import Account
from runner.paths import cache_dir, write_text

log = logging.getLogger(__name__)

PRICE_LIST_REGION = "us-east-1"
"""One of the few regions that answer for all."""
GOOD_FOR_S = 86_400.0
SPOT_PAID = 0.35
"""Share of the on-demand price that spot instances are assumed to cost if nothing better is known."""


@dataclasses.dataclass(frozen=True)
class Price:
    """The on-demand price of one instance."""

    usd: float
    """Dollars per hour."""
    source: str


class Prices:
    """Prices in a region, each requested once a day."""

    def __init__(self, account: Account | None, *, component: Literal["Training", "Hosting"] = "Training") -> None:
        """`account`: used for requests; None: only the table, which is for training. `component`: what runs there."""
        self.account, self.component = account, component
        self._found: dict[str, Price | None] = {}

    def per_hour(self, instance: str) -> Price | None:
        """The price of an instance type; None if it is not known."""
        if instance not in self._found:
            self._found[instance] = self._remembered(instance) or self._asked(instance) or tabled(instance)
        return self._found[instance]

    @property
    def _file(self) -> Path:
        return cache_dir() / "sagemaker-prices.json"

    def _key(self, instance: str) -> str:
        assert self.account is not None
        return f"{self.account.region} {instance}" + (f" {self.component}" if self.component != "Training" else "")

    def _remembered(self, instance: str) -> Price | None:
        if self.account is None:
            return None
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))[self._key(instance)]
            if time.time() - known["asked"] < GOOD_FOR_S:
                return Price(known["usd"], known["source"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def _asked(self, instance: str) -> Price | None:
        from botocore.exceptions import BotoCoreError, ClientError

        if self.account is None:
            return None
        wanted = {"instanceName": instance, "regionCode": self.account.region, "component": self.component}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        try:
            client = self.account.client("pricing", region=PRICE_LIST_REGION, attempts=2)
            answer = client.get_products(ServiceCode="AmazonSageMaker", Filters=filters)
            usd = _price_in(answer["PriceList"])
        except (BotoCoreError, ClientError) as error:
            log.debug("the price list cannot be asked: %s", error)
            return None
        if usd is None:
            return None
        price = Price(usd, f"AWS price list, {date.today().isoformat()}")
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        entry = {"usd": price.usd, "source": price.source, "asked": time.time()}
        write_text(self._file, json.dumps(known | {self._key(instance): entry}))
        return price


def tabled(instance: str) -> Price | None:
    """The price in the project's own table, which covers one region on one day."""
    table = yaml.safe_load((HOME / "conf" / "prices" / "sagemaker.yaml").read_text(encoding="utf-8"))
    usd = table["usd_per_hour"].get(instance)
    return None if usd is None else Price(float(usd), f"table of {table['as_of']}, {table['region']}")


def _price_in(products: list[str]) -> float | None:
    for text in products:
        for term in json.loads(text)["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                usd = float(dimension["pricePerUnit"].get("USD", 0))
                if usd > 0:
                    return usd
    return None
