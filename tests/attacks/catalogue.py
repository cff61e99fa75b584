"""All attacks."""

from __future__ import annotations

from attacks import catalogue_moments, catalogue_network, catalogue_web
from attacks.attack import Attack, Group

GROUPS: tuple[Group, ...] = (
    *catalogue_web.GROUPS,
    *catalogue_network.GROUPS,
    Group("Moments", (), catalogue_moments.SCENARIOS),
)
ATTACKS: tuple[tuple[Group, Attack], ...] = tuple(
    (group, attack) for group in GROUPS for attack in group.attacks
)
