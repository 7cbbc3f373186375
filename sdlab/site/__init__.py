"""The static edition: recorded runs of every loss, and the plane's playground, as files that need no server."""
