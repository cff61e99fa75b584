"""The small internet that the tests bring along.

One network namespace answers for every address there is, speaks DNS, HTTP, HTTPS, plain TCP and
UDP on it, and keeps a record of every contact, so that a test can prove a refusal by the far
side's silence. Network namespaces attached to it (`Internet.attach`) have no other way out.
"""

from internet.contacts import Contact, Contacts
from internet.names import ATTACKER, UPSTREAM_DNS, Record
from internet.world import Internet

__all__ = ["ATTACKER", "UPSTREAM_DNS", "Contact", "Contacts", "Internet", "Record"]
