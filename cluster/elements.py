"""How the tasks of a stage are shared out among the elements of its job array."""


def tasks_of_element(total: int, part: int, parts: int) -> range:
    """The tasks of one element: a block in a row, so that few elements read the same compressed file.

    Args:
        total: tasks of the stage, any number.
        part: number of the element, from 0.
        parts: elements of the array. Those beyond ``total`` get no task.
    """
    size, longer = divmod(total, parts)  # the first ``longer`` blocks have one task more
    begin = part * size + min(part, longer)
    return range(begin, begin + size + (part < longer))


def element_of_task(index: int, total: int, parts: int) -> int:
    """The element that has task ``index``."""
    size, longer = divmod(total, parts)
    if index < longer * (size + 1):
        return index // (size + 1)
    return longer + (index - longer * (size + 1)) // size
