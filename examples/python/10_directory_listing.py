"""Serve the home directory and look at it from outside."""

import requests
from e2b import Sandbox

with Sandbox.create() as sandbox:
    sandbox.commands.run("python -m http.server 3000", background=True)
    host = sandbox.get_host(3000)
    response = requests.get(f"https://{host}")
    print(f"https://{host}: {response.status_code}")
    print(response.text)
