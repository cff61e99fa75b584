"""Parts of E2B that Sandgate does not offer yet, which it must say."""

from __future__ import annotations

import inspect

from sdk.conformance.base import (
    SDK,
    Run,
    check,
    done,
    member,
)


@check("Template.build")
async def _(run: Run) -> None:
    template = member(SDK, "Template")().from_base_image()
    flavour = SDK.AsyncTemplate if run.is_async else SDK.Template
    name = "alias" if "alias" in inspect.signature(flavour.build).parameters else "name"
    await done(flavour.build(template, **{name: "conformance"}))


@check("Volume.create")
async def _(run: Run) -> None:
    volume = member(SDK, "AsyncVolume" if run.is_async else "Volume")
    await done(volume.create("conformance"))


@check("Secret.create")
async def _(run: Run) -> None:
    secret = member(SDK, "AsyncSecret" if run.is_async else "Secret")
    await done(secret.create("conformance", "value"))


@check("Sandbox.create(mcp)")
async def _(run: Run) -> None:
    await run.create("base", mcp={"exa": {"apiKey": "none"}})
