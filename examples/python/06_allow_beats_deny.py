"""An address in both lists is allowed, whatever their order."""

from e2b import CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


network = {"deny_out": ["8.8.8.8", "1.1.1.1"], "allow_out": ["8.8.8.8"]}
with Sandbox.create(network=network) as sandbox:
    print("8.8.8.8 and 1.1.1.1 denied, 8.8.8.8 allowed")
    reach(sandbox, "https://8.8.8.8")
    reach(sandbox, "https://1.1.1.1")
