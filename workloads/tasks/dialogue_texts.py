"""What is said in generated dialogues: places of work with their things, the modalities that show them, and questions of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

GENERIC = "task"
"""Kinds beyond those named here are called `task 9`, `task 10`, ... and ask the generic questions."""


class Domain(NamedTuple):
    """A place of work: what stands there (things), what obeys (devices), what is going on (events) and who is told of it (people)."""

    things: tuple[str, ...]
    devices: tuple[str, ...]
    events: tuple[str, ...]
    people: tuple[str, ...]


DOMAINS: Mapping[str, Domain] = {
    "kitchen": Domain(
        ("the vegetables", "the soup", "the dough", "the pan on the stove", "the milk", "the spice rack"),
        ("oven", "extractor hood", "kettle", "ceiling light", "dishwasher"),
        ("guests arrive in an hour", "the soup boils over", "I have to leave early", "we are out of flour"),
        ("my partner", "the neighbours", "my mother", "the grocer"),
    ),
    "workshop": Domain(
        ("the workpiece", "the drill bit", "the weld seam", "the bearing", "the paint", "the torn belt"),
        ("lathe", "dust extractor", "compressor", "work light", "laser cutter"),
        ("the customer comes at noon", "the machine vibrates", "the shift ends", "a part does not fit"),
        ("the foreman", "the customer", "the night shift", "the supplier"),
    ),
    "clinic": Domain(
        ("the rash", "the dressing", "the medicine box", "the swollen ankle", "the chart", "the inhaler"),
        ("infusion pump", "bed", "room lamp", "monitor", "call bell"),
        ("the ward round begins", "the patient is asleep", "the fever is back", "visitors are waiting"),
        ("the doctor", "the family", "the pharmacy", "the next nurse"),
    ),
    "farm": Domain(
        ("the tomato leaves", "the calf", "the soil", "the fence", "the beehive", "the harvested grain"),
        ("irrigation", "greenhouse vent", "feeder", "barn fan", "tractor"),
        ("rain is on its way", "a cow is limping", "the market opens tomorrow", "frost is forecast"),
        ("the vet", "the farmhands", "the dairy", "the neighbour"),
    ),
    "warehouse": Domain(
        ("the pallet", "the torn carton", "the label", "the top shelf", "the conveyor", "the spilled liquid"),
        ("conveyor", "gate", "forklift charger", "aisle light", "cooling unit"),
        ("a lorry waits at the gate", "two parcels are missing", "the inventory is due", "the scanner fails"),
        ("the driver", "the shift leader", "the customer", "the carrier"),
    ),
    "classroom": Domain(
        ("the blackboard", "the experiment", "the plant", "the worksheet", "the model of the heart", "the poster"),
        ("projector", "blinds", "heating", "loudspeaker", "microscope lamp"),
        ("the lesson ends soon", "a pupil is late", "the parents visit today", "the test is next week"),
        ("the parents", "the class", "the headteacher", "a colleague"),
    ),
}

QUESTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # kind: (questions that need nothing but words, questions about what {shown} shows)
    "assistive system": (
        ("Please turn the {device} down a bit.", "Switch off the {device} in ten minutes, as {event}."),
        ("Set the {device} to suit {thing}, as seen in {shown}.", "Look at {shown} and start the {device} if needed."),
    ),
    "message editing": (
        ("Write to {person} that {event}.", "Leave a short note for {person}: {event}, and I will call later."),
        ("Tell {person} how {thing} looks in {shown}.", "Write {person} a message on what is wrong in {shown}."),
    ),
    "query": (
        ("How long does {thing} keep at room temperature?", "What does the manual of the {device} say about cleaning?"),
        ("What is the state of {thing} in {shown}?", "How many of them can you count in {shown}?"),
    ),
    "recommendation": (
        ("What should I do first, now that {event}?", "Which {device} is worth buying?"),
        ("Judging by {shown}, what should I do with {thing}?", "Recommend two ways to go on from {shown}."),
    ),
    "diagnosis": (
        ("The {device} makes a noise. What are the usual causes?", "What can it mean that {event}?"),
        ("What is wrong with {thing} in {shown}?", "Find the fault of the {device} in {shown}."),
    ),
    "instruction": (
        ("Explain step by step how to reset the {device}.", "How do I proceed when {event}?"),
        ("Guide me through mending {thing}, starting from {shown}.", "What is the next step after what you see in {shown}?"),
    ),
    "inspection": (
        ("Which checks of the {device} are due every month?", "List what to look at when {event}."),
        ("Does {thing} in {shown} pass the inspection?", "Mark every defect you see in {shown}."),
    ),
    "summary": (
        ("Sum up in two sentences why it matters that {event}.", "Summarise what we said about the {device} so far."),
        ("Describe {thing} for the log from {shown}.", "Sum up what has changed in {shown}."),
    ),
    GENERIC: (
        ("Help me with the {device}, as {event}.", "What is there to know about {thing}?"),
        ("Help me with {thing}, as seen in {shown}.", "Work out what {shown} means for the {device}."),
    ),
}  # fmt: skip


def question(kind: str, domain: Domain, needed: Sequence[str], random: Random) -> str:
    """A question of this kind that refers to the modalities it needs by name, and to none of the others."""
    plain, about = QUESTIONS.get(kind, QUESTIONS[GENERIC])
    return random.choice(about if needed else plain).format(
        thing=random.choice(domain.things), device=random.choice(domain.devices), event=random.choice(domain.events),
        person=random.choice(domain.people), shown=_listed(needed),
    )  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    """'the overview, the close-up and the sound clip'."""
    first, last = [f"the {name}" for name in names[:-1]], "".join(f"the {name}" for name in names[-1:])
    return f"{', '.join(first)} and {last}" if first else last
