"""The scenario's policies as a product: the same objects that place subtasks in the simulator place live calls.

Model names: `isthmus/<variant>` for every policy of the scenario (`isthmus/all-llm`, `isthmus/random(p=0.5)`), the short form
`isthmus/<family>@<value>` with any value that the family's knob allows, and a tier's or its model's own name, which no policy
decides about.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from sim.cells import PolicyVariant, expand_policies
from sim.live_policy import LivePolicy, LiveWorld, StudyOnDemand
from sim.policies import build_policy, with_options
from sim.policies.base import Placement, RoutingPolicy
from sim.scenario import Scenario
from sim.study import rates_of, tier_views
from sim.workload import BuiltWorkload
from workloads.errors import InputError, suggest
from workloads.placing import Charge, Decision, TierLoad, earlier_calls
from workloads.task import Completion, ModelCall
from workloads.tasks.pair import count_tokens as pair_tokens

PREFIX = "isthmus/"
_MOST_UNLISTED = 64
"""Policies with values that the scenario does not list, kept at the same time."""
_MOST_ASKED = 1000
"""Names understood once that need not be understood again."""


class _Named(NamedTuple):
    """What a model name stands for: a tier or a policy, and the name under which its calls are counted."""

    label: str
    tier: str = ""
    variant: PolicyVariant | None = None


class PolicyPlacer:
    """Places calls by the policies of a scenario; a workloads.placing.Placer.

    Policies are prepared here, on what the scenario recorded (or on `workload`, where its answers come from elsewhere), and
    travel trained. `seed` is the scenario's first unless given. Raises InputError for a scenario that cannot run.
    """

    def __init__(
        self, scenario: Scenario, scenario_path: Path, *, seed: int | None = None, workload: BuiltWorkload | None = None
    ) -> None:
        self._scenario, self._path = scenario, scenario_path
        self._seed = scenario.seeds[0] if seed is None else seed
        self._world = LiveWorld(scenario, scenario_path, self._seed)
        self._count_tokens = pair_tokens if scenario.workload.tasks.kind in ("pair", "branching") else None
        study = StudyOnDemand(scenario, scenario_path, self._seed, workload)
        self._variants = tuple(expand_policies(scenario, scenario_path.parent))
        self._listed: dict[str, LivePolicy] = {}
        for variant in self._variants:
            policy = build_policy(variant.policy, variant.options, scenario_path.parent)
            policy.prepare(study.as_study())
            self._listed[variant.name] = LivePolicy(policy)
        # Only a policy that studied the tasks can know one again.
        self._tasks = {task.prompt: task for task in reversed(study.tasks) if task.prompt} if study.looked_into else {}
        self._names = self._name_table()
        self._ladders = {
            name: tuple(other for other in scenario.tiers if other != name) if scenario.client.fail_over else ()
            for name in scenario.tiers
        }
        self._unlisted: OrderedDict[str, LivePolicy] = OrderedDict()
        self._asked: dict[str, _Named] = {}
        self._preparing = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock and what can be made again."""
        return {name: value for name, value in vars(self).items() if name not in ("_preparing", "_unlisted")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        vars(self).update(state)
        self._unlisted, self._preparing = OrderedDict(), threading.Lock()

    def names(self) -> tuple[str, ...]:
        """Every policy of the scenario, by its short name where it has one, then the tiers and their models."""
        return tuple(dict.fromkeys(named.label for named in self._names.values()))

    def check(self, model_name: str) -> str:
        """The name under which calls to `model_name` are counted; see workloads.placing.Placer."""
        return self._find(model_name).label

    def prepare(self, model_name: str) -> None:
        """Train a policy with an unlisted value; the others are ready."""
        self._policy(self._find(model_name))

    def place(self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad]) -> Decision:
        """Ask the policy, as the simulator would about the same call. Raises InputError for an unknown model name."""
        named = self._find(model_name)
        if named.tier:
            return Decision(named.tier, "asked for by name", 0.0)
        policy = self._policy(named)
        begun_s = time.perf_counter()
        if call.position and not policy.knows(request):
            # It began before a restart, or on another replica: a policy that decides once for a whole request looks at its
            # first call, so that call is placed first.
            for earlier in earlier_calls(call):
                policy.place(request, self._known(earlier), self._world, load)
        placement = policy.place(request, self._known(call), self._world, load)
        decision_s = time.perf_counter() - begun_s
        return Decision(placement.tier, placement.reason, decision_s, self._ladders[placement.tier])

    def reviews(self, model_name: str) -> bool:
        """Whether the policy of this name looks at answers."""
        variant = self._find(model_name).variant
        return variant is not None and self._kind(variant).review is not RoutingPolicy.review

    def review(
        self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad], decision: Decision, completion: Completion
    ) -> Decision | None:  # fmt: skip
        """Show the policy an answer, as the simulator would."""
        policy = self._ready(self._find(model_name))
        if policy is None:
            return None
        begun_s = time.perf_counter()
        placement = Placement(decision.tier, decision.reason)
        again = policy.review(request, self._known(call), self._world, load, placement, completion)
        if again is None:
            return None
        return Decision(again.tier, again.reason, time.perf_counter() - begun_s, self._ladders[again.tier])

    def charge(
        self, tier: str, completion: Completion, upload_bytes: float, download_bytes: float, prefill_s: float, decode_s: float,
        *, decision_s: float = 0.0, model_name: str = "", request: int = -1, position: int = 0,
    ) -> Charge:  # fmt: skip
        """The scenario's ledger for one answer, with the arithmetic of the simulator."""
        row = self._world.attempt(
            tier, completion, upload_bytes, download_bytes, prefill_s, decode_s, decision_s, request, position
        )
        policy = self._ready(self._find(model_name)) if model_name and request >= 0 else None
        if policy is not None:
            policy.answered(row)
        return self._world.charge(row)

    def _known(self, call: ModelCall) -> ModelCall:
        """The call as the simulator would see it: about the recorded task with this very prompt, if there is one."""
        tokens = self._count_tokens(call.messages) if self._count_tokens else call.prompt_tokens
        return call._replace(task=self._tasks.get(call.task.prompt, call.task), prompt_tokens=tokens)

    def _ready(self, named: _Named) -> LivePolicy | None:
        """The policy, unless it is still to be prepared (or a tier was asked for by name)."""
        if named.variant is None:
            return None
        return self._listed.get(named.variant.name) or self._unlisted.get(named.variant.name)

    def _policy(self, named: _Named) -> LivePolicy:
        ready, variant = self._ready(named), named.variant
        if ready is not None or variant is None:
            return cast(LivePolicy, ready)
        with self._preparing:
            ready = self._unlisted.get(variant.name)
            if ready is None:
                ready = self._unlisted[variant.name] = LivePolicy(self._trained(variant))
                while len(self._unlisted) > _MOST_UNLISTED:
                    self._unlisted.popitem(last=False)
        return ready

    def _trained(self, variant: PolicyVariant) -> RoutingPolicy:
        """A policy with an unlisted value, ready. The files it studies may not lie where this went."""
        policy = with_options(self._kind(variant), variant.policy, variant.options)
        try:
            policy.prepare(StudyOnDemand(self._scenario, self._path, self._seed).as_study())
        except InputError as error:
            if error.place.startswith("policy"):
                raise
            problem = (
                f"{variant.name!r} is not trained, and what it would learn from cannot be read where the gateway runs"
            )
            listed = [other.name for other in self._variants if other.family == variant.family]
            remedy = (
                f"Ask for {' or '.join(PREFIX + name for name in listed)}, or list the value in the scenario's policies"
            )
            raise InputError("policy", problem, remedy) from error
        return policy

    def _kind(self, variant: PolicyVariant) -> type[RoutingPolicy]:
        """The class behind a policy of the scenario, whose file may not lie where this went."""
        return next(self._listed[other.name].kind for other in self._variants if other.policy == variant.policy)

    # --------------------------------------------------------------------------------------------------------- names

    def _name_table(self) -> dict[str, _Named]:
        """Model name -> what it stands for; of two that could have a name the first one has it."""
        table: dict[str, _Named] = {}
        for variant in self._variants:
            kind = self._kind(variant)
            long, short = PREFIX + variant.name, ""
            if kind.knob is not None:
                default = kind.Options.model_fields[kind.knob].default
                short = f"{PREFIX}{variant.family}@{_shown(variant.options.get(kind.knob, default))}"
            swept = variant.name != variant.family
            named = _Named(short if short and swept and short not in table else long, "", variant)
            table.setdefault(long, named)
            table.setdefault(short or long, named)
        for name in self._scenario.tiers:
            table.setdefault(name, _Named(name, name))
        for name, tier in self._scenario.tiers.items():
            model = tier.model_name or name
            table.setdefault(model, _Named(model, name))
        return table

    def _find(self, model_name: str) -> _Named:
        named = self._names.get(model_name) or self._asked.get(model_name)
        if named is None:
            if len(self._asked) >= _MOST_ASKED:
                self._asked.clear()
            named = self._asked[model_name] = self._understand(model_name)
        return named

    def _understand(self, model_name: str) -> _Named:
        """What a name that is not listed stands for."""
        family, at, value = model_name.removeprefix(PREFIX).partition("@")
        base = next((variant for variant in self._variants if variant.family == family), None)
        if not model_name.startswith(PREFIX) or not at or base is None:
            raise InputError("model", f"there is no model {model_name!r}", suggest(model_name, self.names()))
        knob = _parsed(value)
        listed = self._names.get(f"{PREFIX}{family}@{_shown(knob)}")  # 0.50 is 0.5
        return listed or _Named(f"{PREFIX}{family}@*", "", self._with_knob(base, knob))

    def _with_knob(self, base: PolicyVariant, value: int | float | str) -> PolicyVariant:
        """The family's first policy with another value of its knob."""
        kind = self._kind(base)
        if kind.knob is None:
            raise InputError("model", f"{base.family!r} has no value to choose", f"Ask for {PREFIX}{base.name}")
        options = {**base.options, kind.knob: value}
        try:
            with_options(kind, base.policy, options).check(tier_views(self._scenario, rates_of(self._scenario)))
        except InputError as error:
            problem = f"{base.family!r} does not allow {kind.knob} = {value!r}"
            raise InputError("model", problem, _range_of(kind.Options, kind.knob) or error.remedy.rstrip(".")) from None
        return PolicyVariant(f"{base.family}@{_shown(value)}", base.family, base.policy, options, math.nan)


def _shown(value: object) -> str:
    """A knob's value as it stands in a model name: no two values look alike."""
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parsed(text: str) -> int | float | str:
    """A number where the text is one, else the text."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def _range_of(options: Any, name: str) -> str:
    """'Allowed: 0 to 1' for a number with bounds; empty where none are known."""
    field = options.model_json_schema()["properties"][name]
    kind = {"number": "a number", "integer": "a whole number"}.get(field.get("type", ""), "")
    if not kind:
        return ""
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    above = "above" if "exclusiveMinimum" in field else "from"
    ends = [f"{above} {low:g}"] if low is not None else []
    ends += [f"{'below' if 'exclusiveMaximum' in field else 'to'} {high:g}"] if high is not None and high < 1e15 else []
    return " ".join([f"Allowed: {kind}", *ends])
