"""A device that needs no GPU, and runs of every method and command on it.

``stand_in.py`` is the device, ``two_processes.py`` has collectives for it, ``on_device.py`` gives it to Lightning. They
work in a process of their own, which the fixture ``elsewhere`` starts: torch's autograd counts the devices at the first
backward pass of a process.

A new method needs an entry in ``tests/methods/runs.py``. It is then run on the device, alone and as one of two
processes. To see what fails, or where a step waits for the device::

    python -m tests.devices.on_device maskcon --processes 2
"""
