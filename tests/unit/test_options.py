"""Options of methods: what an annotation takes, and what is said of what it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pytest
from pydantic import Field

import influray
from influray.config import parse_config
from influray.options import check_options
from influray.protocols import ConfigError
from influray.registry import KEYS, SEAMS, check, resolve
from influray.selectors.normalisers import NORMALISERS, NormaliserName
from influray.selectors.reductions import REDUCTIONS, ReductionName
from influray.selectors.task_scores import TASK_SCORES, TaskScore
from tests.unit.test_config import tree

Ratio = Annotated[float, Field(ge=0, le=1)]


class Method:
    def __init__(
        self,
        stores: Any,
        count: Annotated[int, Field(ge=1, le=16)] = 2,
        step: Annotated[int, Field(multiple_of=8)] = 8,
        ratio: Ratio | Literal["auto"] = "auto",
        above: Annotated[float, Field(gt=0, le=1)] = 1.0,
        below: Annotated[float, Field(lt=3)] = 1.0,
        flag: bool = False,
        how: Literal["cosine", "dot"] = "cosine",
        name: Annotated[str, Field(min_length=2)] = "ab",
        weights: Mapping[str, Annotated[float, Field(gt=0)]] | None = None,
        names: tuple[str, ...] = (),
        depths: Sequence[Annotated[int, Field(ge=0)]] = (),
        table: dict[str, list[int]] | None = None,
        array: np.ndarray | None = None,
        anything=None,
    ) -> None:
        pass


def checked(**options: Any) -> dict[str, Any]:
    return check_options(Method, "method", "options", ("stores",), options)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"count": np.int16(3)}, 3),
        ({"ratio": np.float32(0.5)}, 0.5),
        ({"ratio": 1}, 1.0),
        ({"ratio": "auto"}, "auto"),
        ({"flag": np.bool_(True)}, True),
        ({"how": "dot"}, "dot"),
        ({"weights": {"a": np.int64(2)}}, {"a": 2.0}),
        ({"weights": None}, None),
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"depths": [np.uint8(1), 2]}, [1, 2]),
        ({"table": {"a": [np.int8(1)]}}, {"a": [1]}),
        ({"anything": np.float64(2)}, 2.0),
    ],
)
def test_numbers_of_numpy_and_lists_of_yaml_are_taken_and_become_pythons(given, taken):
    (found,) = checked(**given).values()
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"count": 0}, "options.count: found 0, expected an integer from 1 to 16"),
        ({"count": 2.5}, "options.count: found 2.5, expected an integer from 1 to 16"),
        ({"count": True}, "options.count: found True, expected an integer from 1 to 16"),
        ({"count": np.bool_(True)}, "options.count: found True, expected an integer from 1 to 16"),
        ({"count": "3"}, "options.count: found '3', expected an integer from 1 to 16"),
        ({"count": None}, "options.count: found None, expected an integer from 1 to 16"),
        ({"step": 9}, "options.step: found 9; Input should be a multiple of 8"),
        ({"ratio": 2}, "options.ratio: found 2, expected a number from 0 to 1 or auto"),
        ({"ratio": float("nan")}, "options.ratio: found nan, expected a number from 0 to 1 or auto"),
        ({"above": 0}, "options.above: found 0, expected a number above 0, at most 1"),
        ({"below": float("inf")}, "options.below: found inf, expected a number below 3"),
        ({"flag": 1}, "options.flag: found 1, expected true or false"),
        ({"flag": "yes"}, "options.flag: found 'yes', expected true or false"),
        ({"how": "cosin"}, "options.how: found 'cosin', expected cosine or dot; did you mean 'cosine'?"),
        ({"how": ["dot"]}, "options.how: found ['dot'], expected cosine or dot"),
        ({"name": "a"}, "options.name: found 'a'; String should have at least 2 characters"),
        ({"name": 3}, "options.name: found 3, expected a text"),
        ({"weights": [1]}, "options.weights: found [1], expected a mapping"),
        ({"weights": {"a": 0}}, "options.weights.a: found 0, expected a number above 0"),
        ({"weights": {"a": True}}, "options.weights.a: found True, expected a number above 0"),
        ({"weights": {1: 2}}, "options.weights.1: found 1; Input should be a valid string"),
        ({"names": "ab"}, "options.names: found 'ab', expected a list"),
        ({"names": ["a", 1]}, "options.names.1: found 1, expected a text"),
        ({"depths": [1, -2]}, "options.depths.1: found -2, expected an integer of 0 or more"),
        ({"table": {"a": [1, "x"]}}, "options.table.a.1: found 'x', expected an integer"),
        ({"array": 3}, "options.array: found 3; Input should be an instance of ndarray"),
        ({"stores": 3}, "options.stores: 'method' has no such option"),
        ({"nmae": "x"}, "options.nmae: 'method' has no such option; did you mean 'name'? (known: count, step, "),
    ],
)
def test_what_is_wrong_is_said_with_its_dotted_key_and_what_would_be_right(given, said):
    with pytest.raises(ConfigError) as caught:
        checked(**given)
    assert str(caught.value).startswith(said)


def test_classes_of_any_make_tell_their_options():
    @dataclass
    class Dataclass:
        stores: Any
        top: Annotated[int, Field(ge=1)] = 1

    class Child(Method):
        pass

    class Loose:
        def __init__(self, stores, **others: Any) -> None:
            pass

    class Lost:
        def __init__(self, stores, top: Nowhere = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

    with pytest.raises(ConfigError, match=r"options\.top: found 0, expected an integer of 1 or more"):
        check_options(Dataclass, "d", "options", ("stores",), {"top": 0})
    with pytest.raises(ConfigError, match=r"options\.count: found 0"):
        check_options(Child, "c", "options", ("stores",), {"count": 0})
    assert check_options(Loose, "l", "options", ("stores",), {"any": np.int64(1)}) == {"any": 1}
    with pytest.raises(ConfigError, match=r"options\.top: its annotation 'Nowhere' says nothing that can be checked"):
        check_options(Lost, "l", "options", ("stores",), {"top": 1})


@pytest.mark.parametrize(("seam", "name"), [(seam, name) for seam, table in SEAMS.items() for name in table])
def test_every_method_is_made_without_options_and_each_of_its_options_is_annotated(seam, name):
    assert check(seam, name, {}) == {}
    with pytest.raises(ConfigError, match=r"no such option") as caught:
        check(seam, name, {"zzz": 1})
    known = str(caught.value).partition("known: ")[2].rstrip(")")
    for option in known.split(", ") if known else ():
        with pytest.raises(ConfigError, match=rf"^{KEYS[seam][1]}\.{option}: found <object"):
            check(seam, name, {option: object()})


def test_names_that_options_take_are_those_of_the_tables():
    for names, table in ((NormaliserName, NORMALISERS), (ReductionName, REDUCTIONS), (TaskScore, TASK_SCORES)):
        assert get_args(names) == tuple(table)


def test_a_config_and_select_take_numbers_of_numpy():
    config = parse_config(
        tree(
            warmup={"epochs": np.int64(3), "learning_rate": np.float32(0.5)},
            selectors=[
                {
                    "name": "a",
                    "method": "bids",
                    "budget": np.int32(7),
                    "seed": np.uint8(1),
                    "options": {"task_weights": {"t": np.float64(2)}},
                    "constraints": {"sources": {"web": {"min": np.int64(1), "max": np.float64(0.5)}}},
                }
            ],
        )
    )
    (selector,) = config.selectors
    assert (config.warmup.epochs, config.warmup.learning_rate, selector.budget, selector.seed) == (3, 0.5, 7, 1)
    assert (selector.constraints.sources["web"].min, selector.constraints.sources["web"].max) == (1, 0.5)
    assert influray.config.dump_config(config)
    with pytest.raises(ConfigError, match="warmup.epochs: YAML reads"):
        parse_config(tree(warmup={"epochs": np.bool_(True)}))
    found = influray.select(
        np.eye(6),
        list("aabbcc"),
        np.int64(3),
        method="strata",
        seed=np.int64(2),
        strata=np.int64(2),
        task_weights={"a": np.float32(2)},
        constraints={"sources": {"web": {"max": np.int64(2)}}},
        rows={"source": ["web"] * 3 + ["code"] * 3},
    )
    assert len(found.rows) == 3
    assert resolve("selectors", "strata", "key")
