"""Gradients by central differences."""


def slope(loss, value, direction, step):
    """How fast `loss(value)` grows if the array moves in a direction."""
    ahead, behind = loss(value + step * direction), loss(value - step * direction)
    return (ahead - behind) / (2 * step)
