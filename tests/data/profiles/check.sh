#!/bin/sh
# Is the stream there? Arguments: address, port, and those of the profile.
exec nc "$1" "$2" </dev/null >/dev/null
