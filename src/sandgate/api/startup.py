"""The start of the control process: from root, which opens its sockets, to the service user."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path

import uvloop
from pydantic import ValidationError

from sandgate.accounts import hash_key, new_key
from sandgate.api.app import Api, create_app
from sandgate.api.process import (
    Control,
    ControlConfig,
    Sockets,
    bind,
    load_server,
    open_sockets,
    prepare_store_dir,
    raise_file_limit,
    serve,
)
from sandgate.api.rehearsal import rehearse
from sandgate.decisions.tally import Subject, Sum
from sandgate.decisions.wire import Batch
from sandgate.egress.privileges import Identity, drop_privileges
from sandgate.node.catalogue import TemplateCatalogue
from sandgate.node.decisions import DecisionHub
from sandgate.reasons import Reason
from sandgate.runtime.client import LauncherError
from sandgate.store import ListQuery, NoteKind, Store, StoreError
from sandgate.store.decisions import DecisionQuery, DecisionStore
from sandgate.templates import TemplateError


def run() -> None:
    """Read the configuration, give up root, serve until told to stop.

    To be called with garbage collection off, which is on from the moment at which it serves.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s", force=True
    )
    try:
        config = ControlConfig.model_validate_json(sys.stdin.read())
    except ValidationError as error:
        sys.exit(f"control: bad configuration: {_explain(error)}")
    try:
        _run(config)
    except (OSError, ValueError, StoreError, TemplateError, LauncherError) as error:
        sys.exit(f"control: {type(error).__name__}: {error}")


def _run(config: ControlConfig) -> None:
    account = Identity.of(config.settings.service_user)
    templates = TemplateCatalogue(config.settings.data_dir)
    store_dir = prepare_store_dir(config.settings.data_dir, account)
    raise_file_limit()
    app = create_app()
    # What was loaded stays; collections need not look at it, the one after the rehearsal either.
    gc.freeze()
    uvloop.run(_rehearse(config, templates, app))
    gc.collect()
    gc.freeze()
    gc.enable()
    sockets = open_sockets(config, account)
    drop_privileges(account)
    store = Store(store_dir / "store.db")
    try:
        decisions = DecisionStore(store_dir / "decisions.db")
        uvloop.run(_serve(config, templates, store, decisions, sockets, app))
    finally:
        store.close()


async def _serve(
    config: ControlConfig,
    templates: TemplateCatalogue,
    store: Store,
    decisions: DecisionStore,
    sockets: Sockets,
    app: Api,
) -> None:
    control = Control(config, templates, store, decisions, sockets.decisions, app)
    await serve(load_server(app), control, sockets.api, sockets.wake)


async def _rehearse(config: ControlConfig, templates: TemplateCatalogue, app: Api) -> None:
    """Import all that is ever needed, while the program's files can be read for sure."""
    key = new_key()
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "rehearsal.db")
        try:
            store.find(ListQuery(states=frozenset({"running"})))
            store.delete("rehearsal")
            store.write_notes(NoteKind.METRICS, {"rehearsal": b""})
            store.delete_notes(NoteKind.METRICS, store.notes(NoteKind.METRICS))
            decisions = DecisionStore(Path(directory) / "decisions.db")
            own = (os.getuid(), os.getgid())
            told = bind(Path(directory) / "decisions.sock", socket.SOCK_DGRAM, own)
            rehearsed = config.model_copy(update={"api_key_hash": hash_key(key)})
            control = Control(rehearsed, templates, store, decisions, told, app)
            control.decisions.start()
            await _rehearse_decisions(control.decisions)
            await rehearse(load_server(app).config.loaded_app, key)
            await control.decisions.close()
        finally:
            store.close()


async def _rehearse_decisions(decisions: DecisionHub) -> None:
    subject = Subject("rehearsal", "tcp", "192.0.2.1", 80, None, False, Reason.DENIED_ADDRESS, None)
    decisions.receive(Batch("rehearsal", [(subject, Sum(0, 0))], {"rehearsal": 1}))
    await decisions.find(DecisionQuery("rehearsal", 1))


def _explain(error: ValidationError) -> str:
    """What is wrong, without the values: there are secrets among them."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)
