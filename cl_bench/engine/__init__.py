"""A run: a stream fed to a method; learn, answer, adapt, measure, write down, stop anywhere and go on."""
