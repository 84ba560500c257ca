"""A robot to learn on: ``python -m real_robot.live --help``."""

if __name__ == "__main__":  # nothing else: every process of a session imports this file again
    from launch.terminal import run_main
    from real_robot.commands.live import main

    run_main(main)
