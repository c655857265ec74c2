"""Runs that stand still: code and history differ, or no live worker holds their code; each goes on by itself."""

from __future__ import annotations

import pytest

from paidonce import RunBlocked
from paidonce.run_handle import RunHandle
from tests.acceptance.site import RUN_SECONDS, Site

pytestmark = pytest.mark.slow

STEPS = """
from paidonce import agent, step
from tests.acceptance.agents.journal import note

@step(name="shop.reserve")
async def reserve(item: str) -> str:
    note(f"reserved {item}")
    return f"reserved {item}"

@step(name="shop.bill")
async def bill(item: str) -> str:
    note(f"billed {item}")
    return f"billed {item}"

@step(name="shop.hold")
async def hold(item: str) -> str:
    import asyncio, os
    note(f"holding {item}")
    while os.path.exists("hold"):
        await asyncio.sleep(0.05)
    return item
"""
AGENT = """
from shop_steps import *

@agent
async def order(item: str) -> list[str]:
    done = [await reserve(item)]
    await hold(item)
    done.append(await bill(item))
    return done
"""


def write(site: Site, name: str, text: str) -> None:
    (site.folder / f"{name}.py").write_text(text)


def begun_and_held(site: Site, parameter: str = "item") -> RunHandle:
    """A run of ``shop`` whose worker was stopped in the step ``hold``; the next one does not hold it."""
    held = site.folder / "hold"
    held.touch()
    worker = site.worker("shop")
    run = site.stranger.submit("order", {parameter: "lamp"})
    site.wait_noted("holding lamp")
    worker.stop()
    held.unlink()
    return run


def test_a_change_of_code_blocks_the_run_naming_both_sides_until_the_code_fits_again(site: Site) -> None:
    write(site, "shop_steps", STEPS)
    write(site, "shop", AGENT)
    run = begun_and_held(site)

    write(site, "shop", AGENT.replace("await reserve(item)", "await bill(item)"))
    second = site.worker("shop")
    with pytest.raises(RunBlocked) as blocked:
        run.result(RUN_SECONDS)
    assert "step 1: history holds 'shop.reserve', the code now requests 'shop.bill'" in str(blocked.value)
    assert "new version" in str(blocked.value)
    assert (run.state, run.view().state_reason) == ("blocked", "history_mismatch")
    second.stop()

    write(site, "shop", AGENT + "\n# mended\n")
    site.worker("shop")
    assert run.result(RUN_SECONDS) == ["reserved lamp", "billed lamp"]
    assert site.journal().count("reserved lamp") == 1


def test_other_arguments_block_the_run_too(site: Site) -> None:
    write(site, "shop_steps", STEPS)
    write(site, "shop", AGENT)
    run = begun_and_held(site)
    write(site, "shop", AGENT.replace("await reserve(item)", "await reserve(item + '!')"))
    site.worker("shop")
    with pytest.raises(RunBlocked, match=r'with \{"item":"lamp"\}, the code now requests .* with \{"item":"lamp!"\}'):
        run.result(RUN_SECONDS)


def test_new_defaulted_parameters_and_fields_are_no_difference(site: Site) -> None:
    steps = """
from dataclasses import dataclass
from paidonce import agent, step
from tests.acceptance.agents.journal import note
import asyncio, os

@dataclass
class Item:
    name: str
    #field

@step(name="shop.reserve")
async def reserve(item: Item#parameter) -> Item:
    note(f"reserved {item.name}")
    return item

@step(name="shop.hold")
async def hold(item: Item) -> None:
    note(f"holding {item.name}")
    while os.path.exists("hold"):
        await asyncio.sleep(0.05)

@agent
async def order(name: str#input) -> str:
    item = await reserve(Item(name))
    await hold(item)
    return repr(item)
"""
    write(site, "shop", steps.replace("#field", "").replace("#parameter", "").replace("#input", ""))
    run = begun_and_held(site, "name")
    newer = steps.replace("#field", "colour: str = 'red'").replace("#parameter", ", gift: bool = False")
    write(site, "shop", newer.replace("#input", ", express: bool = False"))
    site.worker("shop")
    assert run.result(RUN_SECONDS) == "Item(name='lamp', colour='red')"
    assert site.journal().count("reserved lamp") == 1


def test_a_run_without_a_worker_is_blocked_and_goes_on_by_itself_when_one_comes(site: Site) -> None:
    write(site, "shop_steps", STEPS)
    write(site, "shop", AGENT)
    site.settings["no_worker_seconds"] = "3"
    run = site.stranger.submit("order", {"item": "lamp"})
    other = site.worker("shop_steps")  # holds the steps, not the agent
    site.wait_state(run, "blocked")
    view = run.view()
    assert view.state_reason == "no_worker"
    assert view.error is not None and "agent 'order'" in str(view.error["message"])
    assert "start a worker with the module that defines it" in str(view.error["message"])
    other.stop()
    site.worker("shop")
    assert run.result(RUN_SECONDS) == ["reserved lamp", "billed lamp"]


def test_a_message_for_a_step_that_no_worker_holds_makes_no_attempt(site: Site) -> None:
    write(site, "shop_steps", STEPS)
    write(site, "shop", AGENT)
    write(
        site,
        "shop_without_bill",
        AGENT.replace("import *", "import agent, reserve, hold").replace(
            "@agent",
            "from paidonce import step\n@step(name='shop.other')\nasync def bill(item: str) -> str: return ''\n"
            "bill = __import__('dataclasses').replace(bill, name='shop.bill')\n@agent",
        ),
    )
    write(site, "shop_steps", STEPS.replace('@step(name="shop.bill")\nasync def bill', "async def _not_held"))
    site.settings["no_worker_seconds"] = "3"
    first = site.worker("shop_without_bill")
    run = site.stranger.submit("order", {"item": "lamp"})
    site.wait_state(run, "blocked")
    view = run.view()
    assert view.state_reason == "no_worker" and view.error is not None
    assert "step 'shop.bill'" in str(view.error["message"])
    assert [(step.name, step.attempts) for step in run.steps()] == [
        ("shop.reserve", 1),
        ("shop.hold", 1),
        ("shop.bill", 0),
    ]
    first.stop()
    write(site, "shop_steps", STEPS)
    site.worker("shop")
    assert run.result(RUN_SECONDS) == ["reserved lamp", "billed lamp"]


def test_a_message_that_reaches_a_worker_without_the_code_is_passed_on(site: Site) -> None:
    """Two kinds of workers on one queue: whoever gets a message that it cannot serve gives it to the other."""
    write(site, "shop_steps", STEPS)
    write(site, "shop", AGENT)
    write(site, "unrelated", "from paidonce import step\n@step\ndef nothing() -> None: ...\n")
    site.worker("unrelated", wait=False)
    site.worker("shop")
    site.workers[0].wait_ready()
    runs = [site.stranger.submit("order", {"item": f"lamp {number}"}) for number in range(4)]
    for number, run in enumerate(runs):
        assert run.result(RUN_SECONDS * 2) == [f"reserved lamp {number}", f"billed lamp {number}"]
        assert [step.attempts for step in run.steps()] == [1, 1, 1]


def test_an_agent_that_waits_for_nothing_is_blocked(shared: Site) -> None:
    run = shared.stranger.submit("waits_for_nothing", {})
    with pytest.raises(RunBlocked, match="awaits something that no step, timer or child run will ever complete"):
        run.result(RUN_SECONDS)
    run.cancel()
    assert run.state == "cancelled"
