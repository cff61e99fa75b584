"""Allow one name. Connections are made to that name, wherever the sandbox says it is."""

from e2b import ALL_TRAFFIC, CommandExitException, Sandbox


def reach(sandbox: Sandbox, url: str, *options: str) -> None:
    try:
        curl = f"curl -sS --max-time 5 -o /dev/null -w '%{{http_code}}' {' '.join(options)} {url}"
        print(f"  {url}: reached, HTTP {sandbox.commands.run(curl).stdout}")
    except CommandExitException as failed:
        print(f"  {url}: blocked, {failed.stderr.strip()}")


network = {"allow_out": ["google.com"], "deny_out": [ALL_TRAFFIC]}
with Sandbox.create(network=network) as sandbox:
    print("google.com allowed")
    reach(sandbox, "https://google.com")
    reach(sandbox, "https://www.google.com")
    reach(sandbox, "https://cloudflare.com")
    reach(sandbox, "https://1.1.1.1")
    print("google.com claimed to be at 203.0.113.66: still the real one answers")
    reach(sandbox, "https://google.com", "--resolve google.com:443:203.0.113.66")
