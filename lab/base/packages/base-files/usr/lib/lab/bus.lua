-- The lab's ubus: requests and answers as one JSON line each, over unix sockets. procd is the hub; netifd has a socket
-- of its own behind it. Stands for ubusd and libubus (openwrt/ubus); the binary protocol is not imitated.
local socket = require("posix.sys.socket")
local unistd = require("posix.unistd")
local fcntl = require("posix.fcntl")
local errno = require("posix.errno")
local json = require("lab.json")

local bus = {}

bus.HUB = "/var/run/ubus/ubus.sock"
bus.NETIFD = "/var/run/ubus/netifd.sock"

-- A listening socket at `path`.
function bus.listen(path)
	unistd.unlink(path)
	local fd = assert(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0))
	assert(socket.bind(fd, { family = socket.AF_UNIX, path = path }))
	assert(socket.listen(fd, 16))
	fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
	return fd
end

-- A system call again and again until no signal interrupts it: procd's children end at any time.
local function through_signals(call, ...)
	local result, message, number
	repeat
		result, message, number = call(...)
	until result or number ~= errno.EINTR
	return result, message
end

local function read_line(fd)
	local parts = {}
	while true do
		local piece = through_signals(socket.recv, fd, 65536)
		if not piece or piece == "" then break end
		parts[#parts + 1] = piece
		if piece:sub(-1) == "\n" then break end
	end
	return table.concat(parts)
end

local function send_all(fd, text)
	local at = 1
	while at <= #text do
		local sent = through_signals(socket.send, fd, text:sub(at, at + 65535))
		if not sent then return end
		at = at + sent
	end
end

-- Answer one waiting request on `listener` with handler(object, method, arguments) -> table, or nil and a ubus error
-- code (2 invalid argument, 3 method not found, 4 not found).
function bus.answer(listener, handler)
	local fd = through_signals(socket.accept, listener)
	if not fd then return end
	fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
	local request = json.decode(read_line(fd)) or {}
	local ok, result, code = pcall(handler, request.object or "", request.method or "", request.arguments or {})
	local reply
	if not ok then
		io.stderr:write("bus: ", tostring(result), "\n")
		reply = { code = 9 }
	elseif result == nil then
		reply = { code = code or 4 }
	else
		reply = { code = 0, result = result }
	end
	send_all(fd, json.encode(reply) .. "\n")
	unistd.close(fd)
end

-- Call a method; the result table, or nil and a code (-1 when nobody listens).
function bus.call(object, method, arguments, path)
	local fd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
	if not fd or not through_signals(socket.connect, fd, { family = socket.AF_UNIX, path = path or bus.HUB }) then
		if fd then unistd.close(fd) end
		return nil, -1
	end
	send_all(fd, json.encode({ object = object, method = method, arguments = arguments or {} }) .. "\n")
	local reply = json.decode(read_line(fd))
	unistd.close(fd)
	if not reply then return nil, 7 end
	if reply.code ~= 0 then return nil, reply.code end
	return reply.result
end

return bus
