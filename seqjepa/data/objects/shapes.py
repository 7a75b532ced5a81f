"""The classes: how a chair, a table, … is put together from boxes, ellipsoids and cylinders.

Every function draws the proportions of N instances from their numbers and adds parts, in any unit: x to the right, y
away from the viewer, z up, the front towards the viewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqjepa.data._random import constant
from seqjepa.data.objects.assembly import Assembly, Numbers, Solids, instance_numbers
from seqjepa.data.objects.primitives import EMPTY

__all__ = ["CLASSES", "build"]

SIDES = (-1, 1)
NUMBERS = 24  # at most, of an instance; a class that draws more fails at once


def build(identity: Int[Tensor, "N"], label: Int[Tensor, "N"], seed: int) -> Solids:
    """The objects of these identities and classes.

    Args:
        identity: (N,) numbers below 2³², each a different object of its class.
        label: (N,) place of the class in `CLASSES`.
        seed: of the whole collection.

    Returns:
        Solids on the CPU, every row filled up with empty parts to the number that the largest class needs.
    """
    numbers = instance_numbers(identity, seed, NUMBERS)
    rows, groups = [], []
    for index, assemble in enumerate(CLASSES.values()):
        row = (label == index).nonzero().flatten()
        draw = Numbers(numbers[row])
        # Greys only, and close ones: a colour that stays with the object would be learnt instead of its shape.
        main = draw.between(0.62, 0.88)
        tones = {"main": main, "trim": main * draw.between(0.65, 1.0), "dark": main * 0.4}
        assembly = Assembly(len(row), tones)
        assemble(assembly, draw)
        rows.append(row)
        groups.append(assembly.solids())
    parts = max(group.kind.shape[1] for group in groups)
    order = torch.cat(rows).argsort()
    fields = [[_fill(field, parts) for field in fields] for fields in zip(*groups, strict=True)]
    return Solids(*(torch.cat(field)[order] for field in fields))


def _fill(field: Tensor, parts: int) -> Tensor:
    """Empty parts at the end, up to `parts`."""
    missing = (field.shape[0], parts - field.shape[1], *field.shape[2:])
    return torch.cat([field, field.new_full(missing, 0 if field.is_floating_point() else EMPTY)], dim=1)


def either(condition: Tensor, yes: float, no: float) -> Float[Tensor, "N"]:
    """One number or the other for each instance."""
    return torch.where(condition, constant(yes, "cpu"), constant(no, "cpu"))


def airplane(a: Assembly, n: Numbers) -> None:
    """Fuselage, swept wings, tail, sometimes engines."""
    body, span, chord, sweep = n.between(0.1, 0.16), n.between(0.6, 1.0), n.between(0.12, 0.2), n.between(0.0, 0.6)
    height, tail, engines, far = n.between(-0.6, 0.6) * body, n.between(0.25, 0.4), n.chance(0.6), n.between(0.3, 0.5)
    a.ellipsoid((0, 0, 0), (body, 1, body))
    for side in SIDES:
        wing = (span / 2 / sweep.cos(), chord, 0.025)
        a.box((side * span / 2, sweep * span / 2, height), wing, turn=("z", side * sweep), tone="trim")
        engine = (side * far * span, far * span * sweep - chord, height - 0.09)
        a.cylinder(engine, 0.07, 0.15, axis="y", tone="dark", where=engines)
    a.box((0, 0.85, 0), (tail, 0.09, 0.02), tone="trim")
    a.box((0, 0.85, tail / 2), (0.02, 0.11, tail / 2), turn=("x", -0.3), tone="trim")


def bed(a: Assembly, n: Numbers) -> None:
    """Frame, mattress, headboard, pillows, blanket."""
    width, high, head, foot = n.between(0.35, 0.8), n.between(0.06, 0.2), n.between(0.25, 0.55), n.between(0.0, 0.25)
    double, thick = n.chance(0.5), n.between(0.07, 0.14)
    top = high + 2 * thick
    a.box((0, 0, high), (width, 1, high / 2), tone="dark")
    a.box((0, 0, high * 1.5 + thick), (width * 0.96, 0.97, thick))
    a.box((0, 1.03, head), (width, 0.04, head), tone="trim")
    a.box((0, -1.03, high + foot), (width, 0.04, high + foot), tone="trim", where=n.chance(0.5))
    a.box((0, -0.35, high * 1.5 + thick + 0.02), (width, 0.55, thick), tone="trim", where=n.chance(0.6))
    a.ellipsoid((-0.48 * width, 0.75, top + 0.08), (0.38 * width, 0.17, 0.1), where=double)
    a.ellipsoid((0.48 * width, 0.75, top + 0.08), (0.38 * width, 0.17, 0.1), where=double)
    a.ellipsoid((0, 0.75, top + 0.08), (0.7 * width, 0.17, 0.1), where=~double)
    for x in SIDES:
        for y in SIDES:
            a.box((x * (width - 0.06), y * 0.94, high / 4), (0.05, 0.05, high / 4), tone="dark")


def bookcase(a: Assembly, n: Numbers) -> None:
    """Two sides, a back, shelves, and rows of books."""
    width, depth, open_back = n.between(0.4, 0.7), n.between(0.16, 0.26), n.chance(0.25)
    for side in SIDES:
        a.box((side * width, 0, 0), (0.035, depth, 1))
    a.box((0, depth, 0), (width, 0.02, 1), tone="trim", where=~open_back)
    four = n.chance(0.5)
    for shelf in range(5):
        z = either(four, -1 + 2 * shelf / 4, -1 + 2 * min(shelf, 3) / 3) * 0.97
        a.box((0, 0, z), (width, depth, 0.03), where=four | (shelf < 4))
        if shelf < 3:
            length, tall = n.between(0.2, 0.8) * width, n.between(0.12, 0.2)
            a.box(((1 - 2 * (shelf % 2)) * (width - length), 0, z + tall), (length, depth * 0.8, tall), tone="dark")


def bottle(a: Assembly, n: Numbers) -> None:
    """Body, shoulder, neck, cap, label."""
    radius, neck, tall = n.between(0.2, 0.42), n.between(0.07, 0.12), n.between(0.35, 0.6)
    shoulder, long, squarish = n.between(0.1, 0.28), n.between(0.1, 0.28), n.chance(0.25)
    a.cylinder((0, 0, tall), radius, tall, square=squarish)
    a.cylinder((0, 0, 2 * tall + shoulder), radius * 0.98, shoulder, taper=neck / radius)
    a.cylinder((0, 0, 2 * tall + 2 * shoulder + long), neck, long)
    a.cylinder((0, 0, 2 * tall + 2 * shoulder + 2 * long), neck * 1.25, 0.06, tone="dark")
    label = n.between(0.3, 0.7)
    a.cylinder((0, 0, tall), radius * 1.02, tall * label, tone="trim", square=squarish, where=n.chance(0.7))


def car(a: Assembly, n: Numbers) -> None:
    """Body, cabin, wheels, bumpers, lamps; its front towards the viewer."""
    wide, low, roof = n.between(0.36, 0.46), n.between(0.12, 0.2), n.between(0.12, 0.24)
    long, back, wheel, van = n.between(0.35, 0.55), n.between(0.0, 0.25), n.between(0.15, 0.21), n.chance(0.25)
    long = torch.where(van, 0.75, long)
    base = wheel + low
    a.box((0, 0, base), (wide, 1, low))
    a.box((0, back, base + low + roof * 0.5), (wide * 0.9, long, roof * 0.55), tone="dark")
    a.box((0, back, base + low + roof * 1.1), (wide * 0.86, long * 0.8, 0.05))
    for y in SIDES:
        a.box((0, y * 1.0, base - low * 0.6), (wide * 0.98, 0.05, 0.06), tone="trim")
        for x in SIDES:
            a.cylinder((x * wide * 0.92, y * 0.6, wheel), wheel, 0.08, axis="x", tone="dark")
    for x in SIDES:
        a.cylinder((x * wide * 0.7, -1.0, base + low * 0.3), 0.07, 0.03, axis="y", tone="trim")


def chair(a: Assembly, n: Numbers) -> None:
    """Seat, back, four legs or a pedestal, sometimes arms."""
    width, depth, seat, back = n.between(0.38, 0.52), n.between(0.36, 0.5), n.between(0.4, 0.6), n.between(0.35, 0.6)
    leg, lean, square = n.between(0.03, 0.06), n.between(0.0, 0.25), n.chance(0.5)
    pedestal, arms, slats = n.chance(0.25), n.chance(0.4), n.chance(0.35)
    a.box((0, 0, 2 * seat), (width, depth, 0.06))
    pivot = depth + lean.sin() * back
    a.box((0, pivot, 2 * seat + back), (width, 0.04, back), turn=("x", -lean), tone="trim", where=~slats)
    upper = (0, pivot + lean.sin() * back * 0.7, 2 * seat + 1.7 * back)
    a.box(upper, (width, 0.045, back * 0.3), turn=("x", -lean), tone="trim", where=slats)
    for x in SIDES:
        a.cylinder((x * width * 0.85, pivot, 2 * seat + back), 0.035, back, turn=("x", -lean), where=slats)
        for y in SIDES:
            a.cylinder((x * (width - leg), y * (depth - leg), seat), leg, seat, square=square, where=~pedestal)
        a.box((x * width, 0, 2 * seat + 0.32), (0.045, depth * 0.8, 0.035), tone="trim", where=arms)
        a.cylinder((x * width, -depth * 0.6, 2 * seat + 0.16), 0.03, 0.16, where=arms)
    a.cylinder((0, 0, seat), 0.06, seat, where=pedestal)
    a.cylinder((0, 0, 0.05), width * 0.8, 0.06, taper=0.4, tone="dark", where=pedestal)


def dog(a: Assembly, n: Numbers) -> None:
    """Body, head, snout, ears, legs, tail; it looks at the viewer."""
    long, thick, leg, neck = n.between(0.4, 0.65), n.between(0.15, 0.24), n.between(0.16, 0.36), n.between(0.1, 0.35)
    head, snout, ear, tail = n.between(0.15, 0.21), n.between(0.1, 0.24), n.between(0.07, 0.18), n.between(0.15, 0.4)
    up, floppy = n.between(-0.6, 1.1), n.chance(0.5)
    body = 2 * leg + thick * 0.8
    a.ellipsoid((0, 0, body), (thick, long, thick))
    a.cylinder((0, -long * 0.85, body + neck / 2), thick * 0.55, neck * 0.7 + 0.08, turn=("x", 0.6))
    y, z = -long - neck * 0.35, body + neck + 0.06
    a.ellipsoid((0, y, z), (head, head * 1.15, head))
    a.cylinder((0, y - head - snout * 0.4, z - head * 0.25), head * 0.62, snout * 0.75, axis="y", tone="trim")
    outward, upward = head * either(floppy, 1.0, 0.65), torch.where(floppy, 0.0, ear + head * 0.7)
    for side in SIDES:
        a.ellipsoid((side * outward, y + 0.05, z + upward), (0.05, 0.07, ear + 0.04), tone="dark")
        for end in SIDES:
            a.cylinder((side * thick * 0.65, end * long * 0.68, leg), 0.065, leg + 0.05)
    root = (0, long + tail * 0.5 * up.cos(), body + thick * 0.5 + tail * 0.5 * up.sin())
    a.cylinder(root, 0.045, tail, axis="y", turn=("x", up), tone="trim")


def guitar(a: Assembly, n: Numbers) -> None:
    """Two bouts, sound hole, neck, head, bridge; it stands upright."""
    lower, upper, thick = n.between(0.34, 0.44), n.between(0.24, 0.33), n.between(0.06, 0.13)
    neck, long, head = n.between(0.04, 0.06), n.between(0.45, 0.65), n.between(0.07, 0.11)
    electric = n.chance(0.35)
    thick = torch.where(electric, 0.05, thick)
    waist = lower * 0.95
    a.cylinder((0, 0, 0), lower, thick, axis="y")
    a.cylinder((0, 0, waist), upper, thick, axis="y")
    a.cylinder((0, -thick, waist * 0.62), 0.12, 0.012, axis="y", tone="dark", where=~electric)
    top = waist + upper
    a.box((0, -thick * 0.7, top + long * 0.6), (neck, 0.04, long), tone="dark")
    a.box((0, -thick * 0.6, top + long * 1.6 + head), (head, 0.035, head * 1.5), turn=("x", 0.2), tone="trim")
    a.box((0, -thick - 0.015, -lower * 0.35), (0.14, 0.03, 0.035), tone="dark")
    for side in SIDES:
        a.ellipsoid((side * upper * 0.75, 0, top - 0.02), (0.09, thick, 0.2), turn=("y", side * 0.5), where=electric)


def lamp(a: Assembly, n: Numbers) -> None:
    """Foot, stem, shade; or a bent desk lamp."""
    foot, stem, shade, tall = n.between(0.2, 0.4), n.between(0.025, 0.06), n.between(0.28, 0.5), n.between(0.16, 0.32)
    cone, high, desk, ball = n.between(0.35, 0.95), n.between(0.4, 0.75), n.chance(0.3), n.chance(0.3)
    a.cylinder((0, 0, 0.04), foot, 0.05, taper=0.8, tone="trim")
    a.cylinder((0, 0, high), stem, high, tone="dark", where=~desk)
    a.ellipsoid((0, 0, high * 0.6), (0.14, 0.14, high * 0.5), tone="trim", where=~desk & ball)
    a.cylinder((0, 0, 2 * high + tall * 0.6), shade, tall, taper=cone, where=~desk)
    lean = n.between(0.3, 0.6)
    y, z = lean.sin() * high, lean.cos() * high
    a.cylinder((0, y * 0.7, z * 0.7), stem, high * 0.7, turn=("x", -lean), tone="dark", where=desk)
    a.ellipsoid((0, y * 1.4, z * 1.4), (stem * 1.6, stem * 1.6, stem * 1.6), tone="trim", where=desk)
    a.cylinder((0, y * 1.4 - 0.3, z * 1.4 + 0.16), stem, 0.35, turn=("x", 1.0), tone="dark", where=desk)
    a.cylinder((0, y * 1.4 - 0.65, z * 1.4 + 0.22), shade * 0.65, 0.17, taper=0.4, turn=("x", -0.5), where=desk)


def monitor(a: Assembly, n: Numbers) -> None:
    """Screen, frame, stand, foot; sometimes a bulky back, as a tube has."""
    width, ratio, thick = n.between(0.65, 1.0), n.between(0.52, 0.78), n.between(0.03, 0.07)
    stand, foot, tube, disc = n.between(0.14, 0.3), n.between(0.22, 0.42), n.chance(0.25), n.chance(0.4)
    height, tilt = width * ratio, n.between(-0.15, 0.15)
    middle = 2 * stand + height * 0.95
    a.box((0, 0, middle), (width, thick, height), turn=("x", tilt))
    a.box((0, -thick, middle), (width * 0.91, 0.02, height * 0.89), turn=("x", tilt), tone="dark")
    a.cylinder((0, thick + 0.22, middle), height * 0.85, 0.26, axis="y", taper=0.55, tone="trim", where=tube)
    a.box((0, thick, stand + 0.1), (0.08, 0.035, stand + 0.1), tone="trim")
    a.box((0, 0, 0.03), (foot, foot * 0.6, 0.03), tone="trim", where=~disc)
    a.cylinder((0, 0, 0.03), foot * 0.8, 0.03, tone="trim", where=disc)


def mug(a: Assembly, n: Numbers) -> None:
    """Cup, what is in it, and a handle to the right."""
    radius, high, taper = n.between(0.36, 0.55), n.between(0.4, 0.62), n.between(0.75, 1.0)
    thick, reach, tall = n.between(0.04, 0.075), n.between(0.14, 0.26), n.between(0.42, 0.68)
    saucer = n.chance(0.3)
    a.cylinder((0, 0, 0), radius, high, turn=("x", math.pi), taper=taper)
    a.cylinder((0, 0, high), radius * 0.86, 0.012, tone="dark")
    inner = radius * (0.5 + taper / 2)
    a.box((inner + reach, 0, 0), (thick, thick, high * tall), tone="trim")
    for end in SIDES:
        a.box((inner + reach / 2 - 0.02, 0, end * high * tall), (reach / 2 + thick + 0.02, thick, thick), tone="trim")
    a.cylinder((0, 0, -high - 0.02), radius * 1.7, 0.05, turn=("x", math.pi), taper=0.55, tone="trim", where=saucer)


def rocket(a: Assembly, n: Numbers) -> None:
    """Body, nose, fins, engine, sometimes boosters."""
    radius, tall, nose = n.between(0.14, 0.26), n.between(0.45, 0.75), n.between(0.15, 0.35)
    fin, high, boosters = n.between(0.14, 0.3), n.between(0.14, 0.28), n.chance(0.35)
    pointed = n.chance(0.6)
    a.cylinder((0, 0, 0), radius, tall)
    a.cylinder((0, 0, tall + nose), radius, nose, taper=0.05, tone="trim", where=pointed)
    a.ellipsoid((0, 0, tall), (radius, radius, nose * 1.6), tone="trim", where=~pointed)
    a.cylinder((0, 0, -tall - 0.08), radius * 0.8, 0.1, taper=0.6, tone="dark")
    a.cylinder((0, 0, n.between(0.2, 0.7) * tall), radius * 1.03, 0.05, tone="dark")
    far, low, thin = radius + fin * 0.4, high * 0.5 - tall, radius * 0.45
    for side in SIDES:
        a.box((side * far, 0, low), (fin, 0.025, high), turn=("y", side * 0.4), tone="trim")
        a.box((0, side * far, low), (0.025, fin, high), turn=("x", -side * 0.4), tone="trim")
        x = side * radius * 1.4
        a.cylinder((x, 0, -tall * 0.35), thin, tall * 0.6, where=boosters)
        a.cylinder((x, 0, tall * 0.25 + 0.1), thin, 0.1, taper=0.1, tone="trim", where=boosters)


def ship(a: Assembly, n: Numbers) -> None:
    """Hull and bow, cabins, funnel; or mast and sail. Its bow towards the viewer."""
    wide, deep, bow, flare = n.between(0.18, 0.3), n.between(0.1, 0.18), n.between(0.2, 0.4), n.between(0.0, 0.25)
    sails, mast, tier, funnel = n.chance(0.4), n.between(0.5, 0.8), n.between(0.3, 0.55), n.between(0.05, 0.09)
    a.box((0, 0.2, 0), (wide, 0.8, deep), tone="trim")
    point = wide / 2**0.5
    a.box((0, -0.6, 0), (point, point, deep), turn=("z", math.pi / 4), tone="trim")
    a.cylinder((0, -0.6 - bow * 0.4, deep * 0.5), wide * 0.5, bow, axis="y", taper=0.2, turn=("x", math.pi + flare))
    a.box((0, 0.2, deep), (wide * 0.93, 0.76, 0.03))
    a.box((0, 0.35, deep + 0.14), (wide * 0.75, tier, 0.13), where=~sails)
    a.box((0, 0.3, deep + 0.35), (wide * 0.6, tier * 0.6, 0.1), where=~sails)
    for y in (0.1, 0.5):
        a.cylinder((0, y, deep + 0.58), funnel, 0.17, tone="dark", where=~sails)
    a.cylinder((0, 0, deep + mast), 0.035, mast, tone="dark", where=sails)
    a.box((0, 0.3, deep + mast), (0.015, 0.28, mast * 0.6), where=sails)
    a.box((0, -0.3, deep + mast * 0.85), (0.015, 0.2, mast * 0.45), turn=("x", -0.35), where=sails)
    a.box((0, 0.6, deep + 0.06), (wide * 0.6, 0.22, 0.1), where=sails)


def skateboard(a: Assembly, n: Numbers) -> None:
    """Deck, raised ends, trucks, wheels."""
    wide, kick, end, wheel = n.between(0.2, 0.3), n.between(0.2, 0.6), n.between(0.12, 0.2), n.between(0.06, 0.12)
    base, thick, oblong = n.between(0.4, 0.58), n.between(0.02, 0.04), n.chance(0.5)
    height = 2 * wheel + 0.07
    a.box((0, 0, height), (wide, 0.72, thick))
    for y in SIDES:
        raised = (0, y * (0.72 + end * kick.cos() * 0.8), height + end * kick.sin() * 0.8)
        a.box(raised, (wide, end, thick), turn=("x", y * kick), where=oblong)
        a.cylinder((0, y * 0.74, height + 0.05), wide, thick, turn=("x", y * kick * 0.6), where=~oblong)
        a.box((0, y * base, height - 0.07), (wide * 0.55, 0.05, 0.06), tone="trim")
        for x in SIDES:
            a.cylinder((x * wide * 0.75, y * base, wheel), wheel, 0.05, axis="x", tone="dark")


def sofa(a: Assembly, n: Numbers) -> None:
    """Base, back, arms, cushions, feet."""
    width, depth, seat, back = n.between(0.65, 1.1), n.between(0.34, 0.48), n.between(0.13, 0.2), n.between(0.25, 0.45)
    arm, high, round_arms, feet = n.between(0.08, 0.16), n.between(0.1, 0.24), n.chance(0.4), n.between(0.03, 0.12)
    a.box((0, 0, seat), (width, depth, seat))
    a.box((0, depth, seat + back), (width, 0.12, seat * 0.5 + back), turn=("x", -0.1))
    for side in SIDES:
        a.box((side * (width + arm * 0.5), 0, seat + high * 0.5), (arm, depth * 1.05, seat + high * 0.5), tone="trim")
        rest = (side * (width + arm * 0.5), 0, 2 * seat + high)
        a.cylinder(rest, arm * 1.2, depth * 1.05, axis="y", tone="trim", where=round_arms)
        a.box((side * width * 0.48, -0.08, 2 * seat + 0.05), (width * 0.45, depth * 0.85, 0.07), tone="trim")
        for end in SIDES:
            a.cylinder((side * width * 0.9, end * depth * 0.85, -feet), 0.05, feet, tone="dark")


def table(a: Assembly, n: Numbers) -> None:
    """Top, four legs or a pedestal; square, oblong or round."""
    width, depth, high, thick = n.between(0.6, 1.0), n.between(0.4, 0.75), n.between(0.25, 0.5), n.between(0.03, 0.06)
    leg, inset, square = n.between(0.035, 0.08), n.between(0.0, 0.2), n.chance(0.6)
    round_top, pedestal, shelf = n.chance(0.35), n.chance(0.3), n.chance(0.25)
    depth = torch.where(round_top, width, depth)
    a.box((0, 0, 2 * high), (width, depth, thick), where=~round_top)
    a.cylinder((0, 0, 2 * high), width, thick, where=round_top)
    reach = either(round_top, 0.66, 1.0) * (1 - inset)
    across, along = width * reach - leg, depth * reach - leg
    for x in SIDES:
        for y in SIDES:
            a.cylinder((x * across, y * along, high), leg, high, square=square, tone="trim", where=~pedestal)
    a.cylinder((0, 0, high), leg * 1.6, high, tone="trim", where=pedestal)
    a.cylinder((0, 0, 0.04), width * 0.45, 0.05, taper=0.5, tone="trim", where=pedestal)
    a.box((0, 0, high * 0.6), (across, along, 0.025), where=shelf & ~pedestal)


CLASSES: dict[str, Callable[[Assembly, Numbers], None]] = {
    shape.__name__: shape
    for shape in (
        airplane, bed, bookcase, bottle, car, chair, dog, guitar,
        lamp, monitor, mug, rocket, ship, skateboard, sofa, table,
    )
}  # fmt: skip
