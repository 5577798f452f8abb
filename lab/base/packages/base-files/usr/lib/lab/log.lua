-- The system log: a ring in memory, fed by /dev/log, the kernel and procd; optionally sent on by UDP or TCP.
-- Stands for openwrt/ubox logd and logread; lines have logread's form.
local log = { lines = {}, limit = 64 * 1024, size = 0, sequence = 0 }

local facilities = { [0] = "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"ntp", "security", "console", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7" }
local severities = { [0] = "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug" }

local function code_of(name)
	local facility, severity = name:match("^(%w+)%.(%w+)$")
	local number = 0
	for i, f in pairs(facilities) do if f == facility then number = i * 8 end end
	for i, s in pairs(severities) do if s == severity then number = number + i end end
	return number
end

local function keep(priority, text)
	local name = (facilities[priority // 8] or "user") .. "." .. severities[priority % 8]
	local line = os.date("%a %b %e %H:%M:%S %Y") .. " " .. name .. " " .. text
	log.sequence = log.sequence + 1
	log.lines[#log.lines + 1] = line
	log.size = log.size + #line
	while log.size > log.limit and #log.lines > 1 do
		log.size = log.size - #table.remove(log.lines, 1)
	end
	if log.remote then log.remote(priority, text) end
end

-- One message of the system's own programs.
function log.add(priority, tag, text) keep(code_of(priority), tag .. ": " .. text) end

-- One datagram from /dev/log: "<PRI>[date ]tag: text".
function log.datagram(text)
	local priority, rest = text:match("^<(%d+)>(.*)$")
	rest = (rest or text):gsub("^%a%a%a [ %d]%d %d%d:%d%d:%d%d ", ""):gsub("[\r\n\0]+$", "")
	for line in rest:gmatch("[^\n]+") do keep(tonumber(priority) or 13, line) end
end

-- One record of /dev/kmsg: "PRI,SEQ,TIME,-;text".
function log.kernel(record)
	local priority, micros, text = record:match("^(%d+),%d+,(%d+),[^;]*;([^\n]*)")
	if not text then return end
	priority = tonumber(priority)
	if priority >= 8 then return end -- what user space wrote there itself
	keep(priority, string.format("kernel: [%12.6f] %s", tonumber(micros) / 1e6, text))
end

return log
