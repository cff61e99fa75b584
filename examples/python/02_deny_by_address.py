"""Deny everything but some addresses, or deny a single address."""

from e2b import ALL_TRAFFIC, CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


print("everything denied but 1.1.1.1 and 8.8.8.0/24")
network = {"allow_out": ["1.1.1.1", "8.8.8.0/24"], "deny_out": [ALL_TRAFFIC]}
with Sandbox.create(network=network) as sandbox:
    reach(sandbox, "https://1.1.1.1")
    reach(sandbox, "https://8.8.8.8")
    reach(sandbox, "https://9.9.9.9")

print("8.8.8.8 denied")
with Sandbox.create(network={"deny_out": ["8.8.8.8"]}) as sandbox:
    reach(sandbox, "https://1.1.1.1")
    reach(sandbox, "https://8.8.8.8")
