"""Where images and their texts come from: readers of published data sets and the scenes that ship with the package."""
