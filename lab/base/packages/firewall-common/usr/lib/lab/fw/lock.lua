-- Only one fw3 or fw4 at a time loads rules, as on OpenWrt (/var/run/fw4.lock, fw3.lock): two hotplug events at once
-- could otherwise end with the rules of the one that saw less of the network.
local fcntl = require("posix.fcntl")
local unistd = require("posix.unistd")

-- Wait for the lock; it lasts until the program ends.
return function(path)
	local fd = fcntl.open(path, fcntl.O_CREAT | fcntl.O_RDWR, 420)
	if fd then
		fcntl.fcntl(fd, fcntl.F_SETLKW, { l_type = fcntl.F_WRLCK, l_whence = unistd.SEEK_SET, l_start = 0, l_len = 0 })
	end
end
