"""A sandbox has internet unless you say otherwise."""

from e2b import CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


for allow_internet_access in (True, False):
    print(f"{allow_internet_access=}")
    with Sandbox.create(allow_internet_access=allow_internet_access) as sandbox:
        reach(sandbox, "https://google.com")
        reach(sandbox, "https://1.1.1.1")
