"""What everything stands on: errors, names, UCI, releases, events, processes, the workspace, the terminal."""
