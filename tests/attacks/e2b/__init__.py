"""A model of what E2B publishes about its egress: the algorithm, not the product.

Written from the description of its open source parts (rules in the sandbox's namespace, a
transparent proxy that looks at the first bytes of TCP connections to ports 80 and 443, no filter in
DNS), to have something to hold the same attacks against. What is closed source, runs in its cloud,
or depends on its virtual machine is not modelled.
"""
