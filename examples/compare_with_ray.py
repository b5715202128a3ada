"""Run `adjoined compare` on a Ray cluster: each part of the runs is a task.

All machines need the same environment (`pip install 'adjoined[ray]'`), the data and the folder --out. A part that fails
or loses its machine is retried and continues from its last epoch. At the end, the table is printed.

Usage:

    python examples/compare_with_ray.py --parts 2 -- --recipe digits --methods standard,adjoint+ --out runs/ray
"""

import argparse
import subprocess
import sys

import ray  # pyright: ignore[reportMissingImports] - an extra


def compare(*arguments: str) -> None:
    """Run `adjoined compare` in its own process; a failure raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "adjoined.cli", "compare", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=2, help="tasks to divide the runs into, such as one for each seed")
    parser.add_argument("--cpus", type=float, default=1, help="CPU cores that each task reserves")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs that each task reserves")
    parser.add_argument("--retries", type=int, default=2, help="how often a failed part is retried")
    parser.add_argument("arguments", nargs="+", help="of `adjoined compare`, after --")
    args = parser.parse_args()

    ray.init()  # the cluster named in RAY_ADDRESS, or one on this machine
    task = ray.remote(num_cpus=args.cpus, num_gpus=args.gpus, max_retries=args.retries, retry_exceptions=True)(compare)
    ray.get([task.remote(*args.arguments, "--only", f"{number + 1}/{args.parts}") for number in range(args.parts)])
    compare(*args.arguments)


if __name__ == "__main__":
    main()
