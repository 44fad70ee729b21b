"""systemd's manager, asked over D-Bus to make, limit and end the units whose cgroups are ours."""
