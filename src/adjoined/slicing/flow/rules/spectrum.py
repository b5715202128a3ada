"""Fourier transforms and complex numbers."""

from __future__ import annotations

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(state: State, call: Call) -> None:
    """Along positions, channels stay; along channels, each frequency depends on all of them: full width."""
    x, out = call["self"], call.out
    dims = {d % x.ndim for d in call["dim"]}
    carried = []
    for slot in state.slots(x):
        if set(varying(slot)) - dims:  # written in parts, it varies along the places, too
            carried.append(state.collapse(slot, [d for d in range(slot.ndim) if d not in dims]))
        elif varying(slot):
            state.pin(slot, Reason(Kind.NEIGHBOURS, "a Fourier transform along the channels"))
    state.carry(out, carried)


@rule("view_as_complex", "view_as_real")
def pairs(state: State, call: Call) -> None:
    """(…, 2) real numbers are (…) complex ones; the two parts of a number are not channels."""
    x, out = call["self"], call.out
    carried = []
    for slot in state.slots(x):
        if out.ndim > x.ndim:
            carried.append(slot.unsqueeze(-1))
        elif x.ndim - 1 in varying(slot):
            state.pin(slot, Reason(Kind.TWO_AT_ONCE, "real and imaginary parts"))
        else:
            carried.append(slot.squeeze(-1))
    state.carry(out, carried)
