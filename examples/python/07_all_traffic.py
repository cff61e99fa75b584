"""ALL_TRAFFIC stands for every address; a running sandbox can be closed and opened again."""

from e2b import ALL_TRAFFIC, CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


with Sandbox.create(network={"deny_out": [ALL_TRAFFIC]}) as sandbox:
    print(f"{ALL_TRAFFIC} denied")
    reach(sandbox, "https://1.1.1.1")
    sandbox.update_network({"allow_out": ["1.1.1.1"], "deny_out": [ALL_TRAFFIC]})
    print("updated: 1.1.1.1 allowed")
    reach(sandbox, "https://1.1.1.1")
    reach(sandbox, "https://8.8.8.8")
    sandbox.update_network({})
    print("updated: no restriction")
    reach(sandbox, "https://8.8.8.8")
