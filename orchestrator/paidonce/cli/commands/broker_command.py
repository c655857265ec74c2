"""``paidonce broker``: the embedded broker of this home, which outlives the commands that started it."""

from __future__ import annotations

import click

from paidonce.cli.broker_checks import check_broker
from paidonce.cli.output import json_option, print_json, tell
from paidonce.embedded import embedded_status, stop_embedded
from paidonce.settings import Settings, load_settings
from paidonce_models.errors import ConfigurationError
from paidonce_models.queues import DEFAULT_NAMESPACE, SUBMIT_QUEUE, broker_queue_name


@click.group()
def broker() -> None:
    """Show the embedded broker's status, or stop it."""


@broker.command()
@json_option
def status(as_json: bool) -> None:
    """Show whether the broker runs. Never starts it; exit code 3 if a configured broker does not respond."""
    settings = load_settings()
    queues = {}
    if settings.namespace != DEFAULT_NAMESPACE:
        queues = {"namespace": settings.namespace, "submit_queue": submit_queue(settings)}
    if settings.broker_url is not None:
        url = check_broker(settings)
        if as_json:
            print_json({"embedded": False, "running": True, "url": url, **queues})
        else:
            tell(f"The configured broker {url} responds.")
            _tell_queues(settings)
        return
    found = embedded_status(settings.home)
    if as_json:
        document = {"embedded": True, "running": found.running, "url": found.url, "pid": found.pid}
        print_json({**document, "version": found.version, "log": str(found.log_path), **queues})
    elif found.running:
        tell(f"The embedded Valkey {found.version} runs as process {found.pid} at {found.url}.")
        _tell_queues(settings)
    else:
        tell(f"The embedded Valkey of {settings.home} does not run; it starts when it is needed.")


def submit_queue(settings: Settings) -> str:
    """Where a producer without the database sends its submissions."""
    return broker_queue_name(settings.namespace, SUBMIT_QUEUE)


def _tell_queues(settings: Settings) -> None:
    if settings.namespace != DEFAULT_NAMESPACE:
        tell(f"Submissions for namespace {settings.namespace} go to the queue {submit_queue(settings)}.")


@broker.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the embedded broker of PAIDONCE_HOME. Its queues are kept; the next command that needs it starts it."""
    settings = load_settings()
    if settings.broker_url is not None:
        raise ConfigurationError(
            "PAIDONCE_BROKER_URL names a broker that Paidonce did not start; stop that server itself, or unset the "
            "setting to stop the embedded one"
        )
    stopped = stop_embedded(settings.home)
    if as_json:
        print_json({"stopped": stopped})
    else:
        tell("Stopped." if stopped else f"No embedded Valkey of {settings.home} was running.")
