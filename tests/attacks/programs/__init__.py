"""What runs inside the sandbox, on nothing but Python's standard library.

Every function of these modules is one program: it attacks, and returns whether it saw itself that
it got through (False, or nothing, where only the far side can tell). An OSError is a refusal.
"""
