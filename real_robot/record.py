"""Demonstrations: ``python -m real_robot.record --help``."""

if __name__ == "__main__":  # nothing else: every process of a session imports this file again
    from launch.terminal import run_main
    from real_robot.commands.record import main

    run_main(main)
