"""What each rival is told and says: run by an interpreter that has the rival but not kmon, so this imports nothing.

The task: the lines of --file in batches of --batch, rolled up by ten seconds and all dimensions into the measures of
kmon's template. Fields that nobody needs are not decoded where the rival can leave them out.
"""

import argparse
import itertools
import json
import operator
from pathlib import Path

DIMENSIONS = ("partner", "country", "payment_method", "browser", "device", "channel")
MEASURES = ("events", "sessions", "authorizations", "approved", "orders", "errors", "amount")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, required=True, help="for what it stores")
    parser.add_argument("--broker", help="address, of those that read the topic instead of the file")
    parser.add_argument("--topic")
    parser.add_argument("--events", type=int, help="how many there are in the topic")
    return parser.parse_args()


def batches(path, size):
    """Lists of lines."""
    with path.open("rb") as file:
        while lines := list(itertools.islice(file, size)):
            yield lines


def key(event):
    """The cell of an event. Ten seconds are cut out of the text, which is the cheapest way."""
    return (event["ts"][:18], *[event[name] for name in DIMENSIONS])


def measures(event):
    """An event's part in each measure."""
    operation, status = event["operation"], event["status"]
    ok = status == "ok"
    order = operation == "order" and ok
    authorization = operation == "authorization"
    amount = event["amount"] if order else 0.0
    return (1, operation == "session", authorization, authorization and ok, order, status == "error", amount)


def add(one, other):
    """The sum of two cells."""
    return tuple(map(operator.add, one, other))


def say(seconds, totals):
    """The result: seconds for the task alone, without imports, and the totals of the finished rollup."""
    values = dict(zip(MEASURES, totals, strict=True))
    print(json.dumps({"seconds": seconds, "totals": {name: float(value) for name, value in values.items()}}))
