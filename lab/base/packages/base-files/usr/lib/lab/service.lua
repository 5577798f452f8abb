-- Services and their instances: start, watch, respawn, reload. Behaviour of openwrt/procd service/instance.c and
-- service/service.c as seen from outside; the code is our own.
local unistd = require("posix.unistd")
local fcntl = require("posix.fcntl")
local signal = require("posix.signal")
local resource = require("posix.sys.resource")
local stdlib = require("posix.stdlib")
local json = require("lab.json")
local log = require("lab.log")

local service = { services = {}, readers = {} }

local function now()
	local f = io.open("/proc/uptime")
	local up = tonumber(f:read("a"):match("^%S+"))
	f:close()
	return up
end
service.now = now

local function digest(path)
	local f = io.open(path, "rb")
	if not f then return "" end
	local text = f:read("a")
	f:close()
	return text
end

local known_fields = {
	command = true, respawn = true, limits = true, file = true, stdout = true, stderr = true, env = true,
	reload_signal = true, term_timeout = true, pidfile = true, user = true, data = true, netdev = true, nice = true,
}

local function unsupported(what)
	local f = io.open("/tmp/lab-unsupported", "a")
	if f then
		f:write("lab: unsupported ", what, "\n")
		f:close()
	end
	log.add("daemon.err", "procd", "lab: unsupported " .. what)
end
service.unsupported = unsupported

local function spec_of(raw)
	local spec = { command = raw.command or {}, env = raw.env or {}, limits = raw.limits or {}, files = {} }
	for key in pairs(raw) do
		if not known_fields[key] then unsupported("procd_set_param " .. key) end
	end
	for _, field in ipairs({ "data", "netdev", "nice" }) do
		if raw[field] then unsupported("procd_set_param " .. field) end
	end
	spec.stdout = raw.stdout and raw.stdout[1] == "1"
	spec.stderr = raw.stderr and raw.stderr[1] == "1"
	spec.user = raw.user and raw.user[1]
	spec.pidfile = raw.pidfile and raw.pidfile[1]
	spec.term_timeout = tonumber(raw.term_timeout and raw.term_timeout[1]) or 5
	spec.reload_signal = raw.reload_signal and raw.reload_signal[1]
	if raw.respawn then
		spec.respawn = {
			threshold = tonumber(raw.respawn[1]) or 3600,
			timeout = tonumber(raw.respawn[2]) or 5,
			retry = tonumber(raw.respawn[3]) or 5,
		}
	end
	for _, path in ipairs(raw.file or {}) do spec.files[#spec.files + 1] = { path = path, content = digest(path) } end
	spec.raw = raw
	return spec
end

local function same(a, b)
	if json.encode(a.raw) ~= json.encode(b.raw) then return false end
	for i, f in ipairs(a.files) do
		if f.content ~= b.files[i].content then return false end
	end
	return true
end

local function pipe_to_log()
	local r, w = unistd.pipe()
	fcntl.fcntl(r, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
	fcntl.fcntl(r, fcntl.F_SETFL, fcntl.O_NONBLOCK)
	return r, w
end

local function set_limits(limits)
	for name, text in pairs(limits) do
		local soft, hard = text:match("^(%d+) (%d+)$")
		if name == "nofile" and soft then
			resource.setrlimit(resource.RLIMIT_NOFILE, { rlim_cur = tonumber(soft), rlim_max = tonumber(hard) })
		elseif name == "core" then
			local n = text:match("^unlimited") and -1 or tonumber(text:match("^%d+")) or 0
			resource.setrlimit(resource.RLIMIT_CORE, { rlim_cur = n, rlim_max = n })
		end
	end
end

local function become(user)
	for line in io.lines("/etc/passwd") do
		local name, uid, gid = line:match("^([^:]*):[^:]*:(%d+):(%d+):")
		if name == user then
			unistd.setpid("g", tonumber(gid))
			unistd.setpid("u", tonumber(uid))
			return
		end
	end
	unistd._exit(126)
end

local Instance = {}
Instance.__index = Instance

function Instance:start()
	if self.pid or self.halt then return end
	local spec = self.spec
	if #spec.command == 0 then return end
	local r, w = pipe_to_log()
	local pid = unistd.fork()
	if pid == 0 then
		unistd.setpid("s")
		for _, s in ipairs({ signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2 }) do
			signal.signal(s, signal.SIG_DFL)
		end
		local null = fcntl.open("/dev/null", fcntl.O_RDWR)
		unistd.dup2(null, 0)
		unistd.dup2(spec.stdout and w or null, 1)
		unistd.dup2(spec.stderr and w or null, 2)
		if null > 2 then unistd.close(null) end
		unistd.close(w)
		set_limits(spec.limits)
		for name, value in pairs(spec.env) do stdlib.setenv(name, value) end
		local argv = {}
		for i = 2, #spec.command do argv[i - 1] = spec.command[i] end
		if spec.user then become(spec.user) end
		unistd.execp(spec.command[1], argv)
		unistd._exit(127)
	end
	unistd.close(w)
	self.pid, self.started, self.reader = pid, now(), r
	self.wake = nil
	service.readers[r] = { tag = self.spec.command[1]:match("[^/]+$"), pid = pid, rest = "" }
	if spec.pidfile then
		local f = io.open(spec.pidfile, "w")
		if f then f:write(pid, "\n"); f:close() end
	end
end

function Instance:stop()
	self.halt, self.wake = true, nil
	if self.pid then
		signal.kill(self.pid, signal.SIGTERM)
		self.kill_at = now() + self.spec.term_timeout
	end
end

function Instance:restart()
	if self.spec.reload_signal and self.pid then
		local n = tonumber(self.spec.reload_signal) or signal["SIG" .. self.spec.reload_signal:gsub("^SIG", "")]
		if n then signal.kill(self.pid, n) end
		return
	end
	if not self.pid then
		self.halt = false
		self:start()
		return
	end
	self.restarting = true
	signal.kill(self.pid, signal.SIGTERM)
	self.kill_at = now() + self.spec.term_timeout
end

function Instance:ended(status, how)
	local lived = now() - self.started
	self.pid, self.kill_at = nil, nil
	self.exit_code = how == "exited" and status or nil
	if self.halt then
		self.gone = true
		return
	end
	if self.restarting then
		self.restarting = nil
		self:start()
		return
	end
	local respawn = self.spec.respawn
	if not respawn then return end
	if lived < respawn.threshold then
		self.crashes = (self.crashes or 0) + 1
	else
		self.crashes = 0
	end
	if respawn.retry > 0 and self.crashes > respawn.retry then
		log.add("daemon.info", "procd", string.format("Instance %s::%s s in a crash loop %d crashes, %d seconds since last crash",
			self.service, self.name, self.crashes, math.floor(lived)))
		return
	end
	self.wake = now() + respawn.timeout
end

-- `ubus call service set`: the whole wanted state of one service.
function service.set(name, wanted, keep_others)
	local s = service.services[name] or { instances = {}, order = {} }
	service.services[name] = s
	s.triggers = wanted.triggers or s.triggers or {}
	s.script = wanted.script or s.script
	local seen = {}
	for _, raw in ipairs(wanted.instances or {}) do
		seen[raw.name] = true
		local spec = spec_of(raw.params)
		local old = s.instances[raw.name]
		if old and not old.gone and not old.halt then
			local changed = not same(old.spec, spec)
			old.spec = spec
			if not old.pid then
				-- Crashes stay counted: only a stop forgets them.
				old.halt = false
				old:start()
			elseif changed then
				old:restart()
			end
		else
			if old and old.pid then service.finish(old) end
			local instance = setmetatable({ name = raw.name, service = name, spec = spec }, Instance)
			if not s.instances[raw.name] then s.order[#s.order + 1] = raw.name end
			s.instances[raw.name] = instance
			instance:start()
		end
	end
	if not keep_others then
		for other, instance in pairs(s.instances) do
			if not seen[other] then instance:stop() end
		end
	end
	service.sweep()
end

-- Wait for an instance that was told to stop, at most its term_timeout, then kill it.
function service.finish(instance)
	local wait = require("posix.sys.wait")
	local stop = instance.kill_at or now()
	while instance.pid do
		local pid, how, status = wait.wait(instance.pid, wait.WNOHANG)
		if pid == instance.pid then
			instance:ended(status, how)
			break
		elseif not pid then
			instance:ended(0, "exited")
			break
		end
		if now() >= stop then signal.kill(instance.pid, signal.SIGKILL) end
		require("posix.time").nanosleep({ tv_sec = 0, tv_nsec = 20000000 })
	end
end

-- `ubus call service delete`: stop one instance, or the service; returns when it has ended.
function service.delete(name, instance_name)
	local s = service.services[name]
	if not s then return false end
	for n, instance in pairs(s.instances) do
		if not instance_name or n == instance_name then instance:stop() end
	end
	for n, instance in pairs(s.instances) do
		if not instance_name or n == instance_name then
			service.finish(instance)
			instance.gone = true
		end
	end
	if not instance_name then service.services[name] = nil end
	service.sweep()
	return true
end

function service.signal(name, instance_name, number)
	local s = service.services[name]
	if not s then return false end
	for n, instance in pairs(s.instances) do
		if instance.pid and (not instance_name or n == instance_name) then signal.kill(instance.pid, number) end
	end
	return true
end

-- Forget instances that have ended for good.
function service.sweep()
	for _, s in pairs(service.services) do
		local order = {}
		for _, n in ipairs(s.order) do
			local instance = s.instances[n]
			if instance and (not instance.gone or instance.pid) then
				order[#order + 1] = n
			else
				s.instances[n] = nil
			end
		end
		s.order = order
	end
end

-- A child has ended; true when it was one of ours.
function service.child(pid, how, status)
	for _, s in pairs(service.services) do
		for _, instance in pairs(s.instances) do
			if instance.pid == pid then
				instance:ended(status, how)
				service.sweep()
				return true
			end
		end
	end
	return false
end

-- Start what is due, kill what would not end; the seconds until something is due again (at most 1, because a child that
-- ends just before the caller waits is otherwise seen late).
function service.tick()
	local next_due = 1
	for _, s in pairs(service.services) do
		for _, instance in pairs(s.instances) do
			if instance.wake and now() >= instance.wake then instance:start() end
			if instance.kill_at and instance.pid and now() >= instance.kill_at then
				signal.kill(instance.pid, signal.SIGKILL)
				instance.kill_at = now() + 1
			end
			local due = instance.wake or instance.kill_at
			if due then next_due = math.min(next_due, math.max(0, due - now())) end
			if instance.kill_at then next_due = math.min(next_due, 0.05) end -- it ends any moment
		end
	end
	return next_due
end

-- `ubus call service list`, in procd's shape.
function service.list(name)
	local out = {}
	for n, s in pairs(service.services) do
		if not name or n == name then
			local entry = {}
			if #s.order > 0 then
				entry.instances = {}
				for _, i in ipairs(s.order) do
					local x = s.instances[i]
					local shown = { running = x.pid ~= nil, command = json.array(x.spec.command), term_timeout = x.spec.term_timeout }
					shown.__order = { "running", "pid", "command", "term_timeout", "exit_code", "env", "limits", "respawn", "pidfile", "user" }
					shown.pid, shown.exit_code, shown.respawn = x.pid, x.exit_code, x.spec.respawn
					shown.pidfile, shown.user = x.spec.pidfile, x.spec.user
					if shown.respawn then shown.respawn.__order = { "threshold", "timeout", "retry" } end
					if next(x.spec.limits) then shown.limits = x.spec.limits end
					if next(x.spec.env) then shown.env = x.spec.env end
					entry.instances[i] = shown
				end
			end
			out[n] = entry
		end
	end
	return out
end

return service
