"""A sandbox whose URLs need a token."""

import requests
from e2b import Sandbox

with Sandbox.create(network={"allow_public_traffic": False}) as sandbox:
    sandbox.commands.run("python -m http.server 8080", background=True)
    url = f"https://{sandbox.get_host(8080)}"

    response = requests.get(url)
    print(f"without the token: {response.status_code}, {response.json()['message']}")

    token = sandbox.traffic_access_token
    response = requests.get(url, headers={"e2b-traffic-access-token": token})
    print(f"with the token: {response.status_code}")
