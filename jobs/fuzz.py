"""Throw odd rows and configs at what reads them, and print what ends in anything but a record or a reason.

    python jobs/fuzz.py --examples 10000 --seed 0

Rows: those of every form (tests/records_strategy.py) with parts replaced, and trees of JSON under the keys that are
read; each is parsed, named and, where it is usable, encoded with a chat template over a tokenizer of bytes. Configs:
trees of the keys of `data` and the values that stand there. Exit status 1 where something else was raised.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

sys.path.insert(0, str(Path(__file__).parents[1]))  # the strategies are the tests'

from influray.config import dump_config, parse_config
from influray.data.identity import content_name
from influray.data.records import BadRow, parse_record
from influray.protocols import USER_ERRORS
from tests.fuzz_strategy import configs, rows
from tests.tiny import CHATML, byte_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="of rows, and as many of configs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from influray.data.chat import ChatEncoder

    encoder = ChatEncoder(byte_tokenizer(CHATML), "auto", 512)

    def row(data: bytes) -> str:
        try:
            record = parse_record(data, "stem")
            content_name(record)
            encoder.encode(record)
        except BadRow as bad:
            return bad.reason[:24]
        return "used"

    def config(tree: Any) -> str:
        try:
            parsed = parse_config(tree)
        except USER_ERRORS:
            return "refused"
        import yaml

        assert parse_config(yaml.safe_load(dump_config(parsed))) == parsed
        return "used"

    faults = _throw("rows", rows(), row, arguments) + _throw("configs", configs(), config, arguments)
    return int(faults > 0)


def _throw(name: str, strategy: Any, take: Callable[[Any], str], arguments: argparse.Namespace) -> int:
    outcomes: Counter[str] = Counter()
    faults: dict[str, str] = {}

    @seeded(arguments.seed)
    @settings(
        max_examples=arguments.examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def throw(value: Any) -> None:
        try:
            outcomes[take(value)] += 1
        except Exception as error:  # noqa: BLE001 - every kind is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            shown = value.decode("utf-8", "replace") if isinstance(value, bytes) else json.dumps(value, default=str)
            faults.setdefault(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}", shown[:400])

    throw()
    print(f"{name}: {sum(outcomes.values())} examples, {outcomes['used']} usable, {len(faults)} kinds of fault")
    for reason, count in outcomes.most_common(25):
        print(f"  {count:6d}  {reason}")
    for kind, example in faults.items():
        print(f"  FAULT {kind}: {example}")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main())
