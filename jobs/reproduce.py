"""The miniature comparison at full length; stopped, the same command goes on. Hours on two cores."""

import argparse
import logging

from influray.miniature.reproduce import reproduce, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/reproduce", help="where the runs lie, one folder a world")
    parser.add_argument("--worlds", type=int, nargs="+", default=[0, 1, 2], help="seeds of worlds")
    parser.add_argument("--seeds", type=int, default=10, help="tuning seeds a selection")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.10, 0.15], help="fractions of the pool")
    parser.add_argument("--near-duplicates", type=float, help="also every method with this constraint, such as 0.99")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seeds = range(options.seeds)
    print(table(reproduce(options.folder, options.worlds, seeds, options.budgets, options.near_duplicates)))


if __name__ == "__main__":
    main()
