"""A person leads the robot: clutch, devices, browser page, and the process that they live in."""
