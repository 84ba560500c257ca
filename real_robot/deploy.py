"""A policy on a robot: ``python -m real_robot.deploy --help``."""

if __name__ == "__main__":  # nothing else: every process of a session imports this file again
    from launch.terminal import run_main
    from real_robot.commands.deploy import main

    run_main(main)
