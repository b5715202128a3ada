"""Why a network's speed-up falls short of its reduction in multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

from adjoined.benchmark import IN_PYTORCH, RUNTIMES
from adjoined.benchmark.environment import Environment
from adjoined.benchmark.result import Benchmark, NetworkFigures, Speedup, Timing
from adjoined.benchmark.turns import NOISY
from adjoined.printable import counted
from adjoined.report.units import count, size

EXPLAINED = 0.7
"""A speed-up below this fraction of the ratio of MACs is explained."""
FIXED_SHARE = 0.25
"""Fixed fraction of a call's time above which it is reported."""
GLIBC_KEEPS = 64 * 2**20
"""Most bytes that glibc keeps before it returns memory to the system: twice its DEFAULT_MMAP_THRESHOLD_MAX."""


def explain(found: Benchmark) -> list[str]:
    """Return sentences on fp32 speed-ups far below the ratio of MACs and their causes.

    Returns:
        First a warning if the machine was too busy for reliable figures; then the reliable speed-ups that fall short,
        and the causes that the figures show.
    """
    base, sentences = found.networks[0], _noise(found.rows)
    for small in found.networks[1:]:
        reliable = (each for each in found.speedups if each.network == small.name and not found.is_doubtful(each))
        plain = (each for each in reliable if each.precision == each.against == "fp32")
        behind = [each for each in plain if each.speedup < EXPLAINED * each.mac_ratio]
        if not behind:
            continue
        places = ", ".join(f"{_place(each)} {each.speedup:.1f}x" for each in behind)
        sentences.append(
            f"{small.name}: the speed-up is below {100 * EXPLAINED:.0f} % of the ratio of MACs "
            f"({behind[0].mac_ratio:.1f}x): {places}."
        )
        handed_back = "" if _keeps_memory(found.environment) else _handed_back(base, small, behind)
        reasons = [*_fixed_costs(found.rows, behind, small), handed_back, _memory(base, small), _odd_widths(small)]
        sentences += [reason for reason in reasons if reason]
    return sentences


def _noise(rows: Sequence[Timing]) -> list[str]:
    noisy = [row for row in rows if row.latency.is_noisy]
    if not noisy:
        return []
    named = ", ".join(
        f"{row.network} in {RUNTIMES[row.runtime]}{'' if row.precision == 'fp32' else f' {row.precision}'} "
        f"at batch {row.latency.batch_size} on {row.latency.device}"
        for row in noisy
    )
    return [
        f"The machine was busy: in {len(noisy)} of {len(rows)} rows the inter-quartile range is more than "
        f"{100 * NOISY:.0f} % of the median ({named}). Interruptions affect long and short calls differently, so "
        f"speed-ups of these rows, marked with ?, are unreliable: measure again on a quiet machine."
    ]


def _place(each: Speedup) -> str:
    return f"{RUNTIMES[each.runtime]}{' on a GPU' if each.device != 'cpu' else ''} at batch {each.batch_size}"


def _fixed_costs(rows: Sequence[Timing], behind: Sequence[Speedup], small: NetworkFigures) -> list[str]:
    """Compare a call with one image to the time per image in the largest batch: the excess is a fixed cost."""
    shares, rest = [], ""
    for place in behind:
        alike = {
            row.latency.batch_size: row.latency.median_ms
            for row in rows
            if not row.latency.is_noisy
            and (row.runtime, row.network, row.precision, row.latency.device)
            == (place.runtime, small.name, "fp32", place.device)
        }
        most = max(alike, default=1)
        if place.batch_size != 1 or most == 1:
            continue
        one, share = alike[1], alike[most] / most
        if one - share >= FIXED_SHARE * one:
            where = f"{RUNTIMES[place.runtime]}{' on a GPU' if place.device != 'cpu' else ''}"
            shares.append(f"{100 * (1 - share / one):.0f} % of the call in {where}")
            rest = (
                f"Launch overhead: an image alone takes {small.name} longer than one in a batch of {most}. The "
                f"difference does not shrink with the channels, because {small.name} launches {count(small.operators)} "
                f"operators, as many as the base. It makes up "
            )
    return [f"{rest}{', '.join(shares)}."] if shares else []


def _keeps_memory(environment: Environment) -> bool:
    """Whether the process was started with huge pages, or with an allocator that does not trim."""
    malloc = environment["malloc"]
    return malloc.get("THP_MEM_ALLOC_ENABLE", "0") != "0" or "MALLOC_TRIM_THRESHOLD_" in malloc


def _handed_back(base: NetworkFigures, small: NetworkFigures, behind: Sequence[Speedup]) -> str:
    """Report activations that glibc frees between calls; the times alone do not reveal this cost."""
    for place in behind:
        each = base.activation_bytes[str(place.batch_size)], small.activation_bytes[str(place.batch_size)]
        if place.runtime in IN_PYTORCH and place.device == "cpu" and max(each) > GLIBC_KEEPS:
            return (
                f"Memory handed back: with {counted(place.batch_size, 'image')}, activations take {size(each[0])} in "
                f"the base and {size(each[1])} in {small.name}. On Linux, glibc returns memory beyond "
                f"{size(GLIBC_KEEPS)} to the system and requests it again, page by page, in every call; --huge-pages, "
                f"or THP_MEM_ALLOC_ENABLE=1 in the environment of a service, makes PyTorch use huge pages, which may "
                f"save much of that time."
            )
    return ""


def _memory(base: NetworkFigures, small: NetworkFigures) -> str:
    macs, moved = base.macs / small.macs, base.moved_bytes / small.moved_bytes
    if moved >= EXPLAINED * macs:
        return ""
    return (
        f"Memory: for one image the operators read and write {size(base.moved_bytes)} in the base and "
        f"{size(small.moved_bytes)} in {small.name}, {moved:.1f}x less, because activations shrink with the width and "
        f"MACs with its square; memory-bound layers (norms, activations, additions, depthwise convolutions) gain no "
        f"more than that."
    )


def _odd_widths(small: NetworkFigures) -> str:
    if not small.odd_layers:
        return ""
    named = ", ".join(small.odd_layers[:3]) + (", …" if len(small.odd_layers) > 3 else "")
    return (
        f"Odd widths: in {len(small.odd_layers)} layers of {small.name} the channels are not a multiple of 8 ({named}) "
        f"and leave vector units partly idle; `round_to` 8 widens these layers where the base allows it."
    )
