"""A new robot's first motions, step by step: ``python -m real_robot.first_run --help``."""

if __name__ == "__main__":  # nothing else: every process of a session imports this file again
    from launch.terminal import run_main
    from real_robot.commands.first_run import main

    run_main(main)
