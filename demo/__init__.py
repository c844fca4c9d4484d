"""The small real data set that `segue demo` runs on: a package only so that it travels in the wheel."""
