"""Names, wildcards and addresses in one list."""

from e2b import ALL_TRAFFIC, CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


allow_out = ["api.example.com", "*.github.com", "8.8.8.8"]
with Sandbox.create(network={"allow_out": allow_out, "deny_out": [ALL_TRAFFIC]}) as sandbox:
    print(f"{', '.join(allow_out)} allowed")
    reach(sandbox, "https://api.example.com")
    reach(sandbox, "https://api.github.com")
    reach(sandbox, "https://8.8.8.8")
    reach(sandbox, "https://1.1.1.1")
