"""One worker of the simulated fleet: its own cache of coroutines, and the bodies it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from paidonce.advance import Advancer
from paidonce.claiming import Claimer
from paidonce.declarations import StepDeclaration
from paidonce.registry import Registry
from paidonce.replay.cache import MachineCache
from paidonce.user_errors import error_of
from paidonce_models.budgets import Unit
from paidonce_models.database import Database
from paidonce_models.payloads import split
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.claims import Claim, Claimant
from paidonce_models.store.completion import Completion
from paidonce_models.store.leases import LeaseKey
from paidonce_models.usage import CallKind, CallRecord, UsageSource
from tests.simulation.programs import Boom, OutOfTime, failures_before, interpret, look_up, work
from tests.simulation.store import NAMESPACE

LEASE_US = 10_000_000
RETRY_AFTER_US = 2_000_000
PRICE_NANOUSD = 1_000
STEPS: dict[str, StepDeclaration[..., int]] = {work.name: work, look_up.name: look_up}


class Crash(BaseException):
    """A worker dies. Not an ``Exception``: nothing may catch it but the fleet."""


@dataclass(eq=False, kw_only=True)
class Execution:
    """A body that has been started; ``completion`` is what its worker will report if it lives to do so."""

    claim: Claim
    worker: Worker
    completion: Completion
    is_frozen: bool = False

    @property
    def key(self) -> LeaseKey:
        """Its lease."""
        return LeaseKey(self.claim.run_id, self.claim.position, self.claim.attempt)


@dataclass(eq=False)
class Worker:
    """A process. One that has died is replaced by a new one under another name."""

    name: str
    database: Database
    cache_size: int
    holds_agents: bool
    is_alive: bool = True
    cache: MachineCache = field(init=False)
    advancer: Advancer = field(init=False)
    claimer: Claimer = field(init=False)

    def __post_init__(self) -> None:
        registry = Registry()
        for declaration in STEPS.values():
            registry.add_step(declaration)
        if self.holds_agents:
            registry.add_agent(interpret)
        self.cache = MachineCache(self.cache_size)
        self.advancer = Advancer(self.database, registry, self.cache, namespace=NAMESPACE)
        claimant = Claimant(namespace=NAMESPACE, worker=self.name, lease_us=LEASE_US)
        self.claimer = Claimer(self.database, registry, claimant, dict.fromkeys(Unit, PRICE_NANOUSD))

    def run_body(self, claim: Claim) -> Execution:
        """Call the step's plain function and make the completion that it leads to."""
        declaration = STEPS[claim.name]
        args, kwargs = declaration.parameters.decode_arguments(claim.arguments)
        token = failures_before.set(claim.failed)
        record = CallRecord(
            id=f"{claim.run_id[-12:]}-{claim.position}-{claim.attempt}",
            kind=CallKind.TOOL,
            started_at_us=claim.claimed_at_us,
            usage_source=UsageSource.EXPLICIT,
            cost_nanousd=PRICE_NANOUSD,
            other_cost_nanousd=PRICE_NANOUSD,
        )
        # Some steps cost nothing, as most tools do.
        calls = () if args and args[0] == 0 else (record,)
        try:
            result = declaration.result_codec.encode(declaration.fn(*args, **kwargs), "result")
        except (Boom, OutOfTime) as error:
            script = str(args[1] if len(args) > 1 else kwargs["script"])
            completion = Completion(
                claim=claim,
                worker=self.name,
                outcome=AttemptOutcome.TIMED_OUT if isinstance(error, OutOfTime) else AttemptOutcome.FAILED,
                error=error_of(error),
                retry_after_us=RETRY_AFTER_US if script[claim.failed] == "r" else None,
                calls=calls,
            )
        else:
            completion = Completion(
                claim=claim,
                worker=self.name,
                outcome=AttemptOutcome.ACCEPTED,
                result=split(result),
                result_json=result,
                calls=calls,
            )
        finally:
            failures_before.reset(token)
        return Execution(claim=claim, worker=self, completion=completion)
