"""Foundation of every run: settings, errors, log, files, devices, compiled loops."""
