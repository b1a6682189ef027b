"""The price list: what an hour of an instance costs, in the format of AWS's price list API."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .calls import Call
from .instances import InstanceType
from .protocol import ServiceError, page_of

LOCATIONS = {
    "us-east-1": ("US East (N. Virginia)", "USE1"),
    "us-west-2": ("US West (Oregon)", "USW2"),
    "eu-central-1": ("EU (Frankfurt)", "EUC1"),
}
COMPONENTS = ("Training", "Hosting")


class PriceList:
    """Prices of training and hosting, by instance type and region."""

    def __init__(self, instance_types: dict[str, InstanceType]) -> None:
        self.instance_types = instance_types
        self.training: dict[str, float] = {}
        """Dollars per hour, if a test wants other prices than those in the table of instance types."""

    def price(self, instance_type: str) -> float:
        """Dollars per hour of training."""
        return self.training.get(instance_type, self.instance_types[instance_type].price)

    @property
    def operations(self) -> dict[str, Any]:
        """The operations of the price list API."""
        return {"GetProducts": self._get_products}

    def _get_products(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        if call.region not in ("us-east-1", "eu-central-1", "ap-south-1"):
            raise ServiceError("AccessDeniedException", f"The price list API has no endpoint in {call.region}.")
        products = self._products() if parameters["ServiceCode"] == "AmazonSageMaker" else []
        for wanted in parameters.get("Filters", []):
            field, value = wanted["Field"], wanted["Value"].lower()
            products = [one for one in products if _attribute(one, field).lower() == value]
        chosen, token = page_of(products, parameters, default=100)
        return {"FormatVersion": "aws_v1", "PriceList": [json.dumps(one) for one in chosen], "NextToken": token}

    def _products(self) -> list[dict[str, Any]]:
        return [
            _product(instance_type, region, component, self.price(instance_type))
            for instance_type in self.instance_types
            for region in LOCATIONS
            for component in COMPONENTS
        ]


def _attribute(product: dict[str, Any], field: str) -> str:
    inner = product["product"]
    return str(inner["productFamily"] if field == "productFamily" else inner["attributes"].get(field, ""))


def _product(instance_type: str, region: str, component: str, price: float) -> dict[str, Any]:
    location, short = LOCATIONS[region]
    sku = hashlib.sha256(f"{instance_type} {region} {component}".encode()).hexdigest()[:16].upper()
    term = f"{sku}.JRTCKXETXF"
    dimension = {
        "unit": "Hrs",
        "endRange": "Inf",
        "beginRange": "0",
        "rateCode": f"{term}.6YS6EN2CT7",
        "description": f"${price} for {component} {instance_type} per hour in {location}",
        "appliesTo": [],
        "pricePerUnit": {"USD": f"{price:.10f}"},
    }
    attributes = {
        "servicecode": "AmazonSageMaker",
        "servicename": "Amazon SageMaker",
        "regionCode": region,
        "location": location,
        "locationType": "AWS Region",
        "instanceName": instance_type,
        "instanceType": instance_type,
        "component": component,
        "platoinstancename": instance_type,
        "platoinstancetype": component,
        "usagetype": f"{short}-{'Train' if component == 'Training' else 'Host'}:{instance_type}",
        "operation": "RunInstance",
    }
    return {
        "product": {"productFamily": "ML Instance", "attributes": attributes, "sku": sku},
        "serviceCode": "AmazonSageMaker",
        "terms": {
            "OnDemand": {
                term: {
                    "priceDimensions": {dimension["rateCode"]: dimension},
                    "sku": sku,
                    "effectiveDate": "2026-11-01T00:00:00Z",
                    "offerTermCode": "JRTCKXETXF",
                    "termAttributes": {},
                }
            }
        },
        "version": "20261101000000",
        "publicationDate": "2026-11-01T00:00:00Z",
    }
