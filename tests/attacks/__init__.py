"""Attacks on the egress gate, run as root from inside a sandbox.

Each :class:`~attacks.attack.Attack` is run three times: in a sandbox of a real node, behind a model
of E2B's published algorithm, and in a place without any gate. The last shows that the attack works
and that the far side counts it; the other two are judged by what the far side heard.
"""
