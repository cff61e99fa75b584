"""Allow every name below a domain, but not the domain itself."""

from e2b import ALL_TRAFFIC, CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


network = {"allow_out": ["*.mydomain.com"], "deny_out": [ALL_TRAFFIC]}
with Sandbox.create(network=network) as sandbox:
    print("*.mydomain.com allowed")
    reach(sandbox, "https://www.mydomain.com")
    reach(sandbox, "https://deep.down.mydomain.com")
    reach(sandbox, "https://mydomain.com")
    reach(sandbox, "https://google.com")
