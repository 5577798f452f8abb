#!/bin/sh
# An image onto the disk that this system started from (target/linux/x86/base-files/lib/upgrade/platform.sh): what is
# compared, what is written and in which order is as there, for a power cut and a changed layout to do the same here.

BOOT=/tmp/boot
KEPT=sysupgrade.tgz

# The partition with the root file system (the lab's initramfs says which), and the disk that it is on.
root_device() {
	readlink /dev/lab-root
}

disk_device() {
	local name
	name="$(root_device)"
	name="${name##*/}"
	[ -n "$name" ] && [ -e "/sys/class/block/$name/partition" ] || return 1
	name="$(readlink -f "/sys/class/block/$name/..")"
	echo "/dev/${name##*/}"
}

# The device of a partition by its number: vda1, nvme0n1p1.
partition_device() { # DISK NUMBER
	local folder
	for folder in "/sys/class/block/${1##*/}/${1##*/}"*; do
		[ "$(cat "$folder/partition" 2>/dev/null)" = "$2" ] && echo "/dev/${folder##*/}" && return 0
	done
	return 1
}

# What is in an image: unpacked, whatever follows the gzip stream left out.
get_image() {
	case "$(dd if="$1" bs=2 count=1 2>/dev/null | hexdump -v -e '1/1 "%02x"')" in
		1f8b) zcat <"$1" 2>/dev/null ;;
		*) cat "$1" ;;
	esac
}

# So many sectors of an image from one on.
sectors() { # IMAGE START SIZE
	get_image "$1" | tail -c "+$(($2 * 512 + 1))" | head -c "$(($3 * 512))"
}

is_gpt() {
	[ "$(dd if="$1" bs=1 skip=512 count=8 2>/dev/null)" = "EFI PART" ]
}

# A line for each partition of a disk, or of an image's beginning: number, first sector, sectors.
partitions() {
	if is_gpt "$1"; then
		hexdump -v -s 1024 -n 16384 -e '32/4 "%u " "\n"' "$1" |
			awk '$9 || $10 { print NR, $9 + $10 * 4294967296, $11 + $12 * 4294967296 - $9 - $10 * 4294967296 + 1 }'
	else
		hexdump -v -s 446 -n 64 -e '8/1 "%u " " " 2/4 "%u " "\n"' "$1" | awk '$10 { print NR, $9, $10 }'
	fi
}

# True if every partition of the image is on the disk, at the same place and as large. What else is there may stay.
same_layout() { # IMAGE DISK
	local rc
	partitions "$2" >/tmp/partmap.bootdisk
	get_image "$1" | dd of=/tmp/image.bs bs=512 count=63 iflag=fullblock 2>/dev/null
	partitions /tmp/image.bs >/tmp/partmap.image
	grep -F -x -v -f /tmp/partmap.bootdisk /tmp/partmap.image >/dev/null
	rc=$?
	rm -f /tmp/image.bs /tmp/partmap.bootdisk
	[ $rc -ne 0 ]
}

platform_check_image() {
	local disk
	case "$(get_image "$1" | dd bs=2 count=1 2>/dev/null | hexdump -v -e '1/1 "%02x"')" in
		eb48 | eb63) ;;
		*)
			say "Invalid image type"
			return 1
			;;
	esac
	disk="$(disk_device)" || {
		say "Unable to determine upgrade device"
		return 1
	}
	same_layout "$1" "$disk" || say "Partition layout has changed. Full image will be written."
	rm -f /tmp/partmap.image
	return 0
}

# Mounts the boot partition by its place in the table on the disk: after the whole disk was written, the kernel does not
# know the new table yet (the real script tells it with partx).
mount_boot() { # DISK
	local number start size type=ext4
	partitions "$1" >/tmp/partmap.boot
	read -r number start size </tmp/partmap.boot
	rm -f /tmp/partmap.boot
	[ "$number" = 1 ] && [ -n "$size" ] || return 1
	losetup -o $((start * 512)) /dev/loop7 "$1" || return 1
	dd if=/dev/loop7 bs=512 count=1 2>/dev/null | grep -q -e FAT -e MSDOS && type=vfat
	mkdir -p $BOOT
	mount -t $type -o rw,noatime /dev/loop7 $BOOT && return 0
	losetup -d /dev/loop7
	return 1
}

umount_boot() {
	umount $BOOT
	losetup -d /dev/loop7
}

platform_do_upgrade() { # IMAGE KEEP_TABLE NUMBER
	local disk device part start size id
	disk="$(disk_device)" || return 1
	sync
	if [ "$2" != 1 ] || ! same_layout "$1" "$disk"; then
		get_image "$1" | dd of="$disk" bs=4096 iflag=fullblock conv=fsync
		return 0
	fi
	while read -r part start size; do
		if device="$(partition_device "$disk" "$part")"; then
			say "Writing image to $device..."
			sectors "$1" "$start" "$size" | dd of="$device" bs=1M iflag=fullblock conv=fsync
		else
			say "Unable to find partition $part device, skipped."
		fi
	done </tmp/partmap.image
	say "Writing new UUID to $disk..."
	get_image "$1" | tail -c +441 | head -c 4 | dd of="$disk" bs=1 seek=440 conv=notrunc,fsync 2>/dev/null
	# 18.06 and 19.07 leave the boot loader as it is; on GPT it is in a partition of its own.
	if [ "$3" -ge 2102 ] && ! is_gpt "$disk"; then
		say "Upgrading bootloader on $disk..."
		sectors "$1" 1 511 | dd of="$disk" bs=512 seek=1 iflag=fullblock conv=notrunc,fsync
	fi
	is_gpt "$disk" || return 0
	# The table stays, and with it the partitions' GUIDs: the new boot menu has to name those.
	id="$(dd if="$disk" bs=1 skip=1168 count=16 2>/dev/null |
		hexdump -v -e '1/4 "%08x" "-" 1/2 "%04x" "-" 1/2 "%04x" "-" 2/1 "%02x" "-" 6/1 "%02x"')"
	mount_boot "$disk" || return 0
	sed -i "s/PARTUUID=[0-9a-fA-F-]*/PARTUUID=$id/" $BOOT/boot/grub/grub.cfg
	umount_boot
}

# Nobody looks whether there is room: what is too large is cut off, and lost.
platform_copy_config() { # BACKUP
	mount_boot "$(disk_device)" || return 0
	cp -af "$1" "$BOOT/$KEPT"
	umount_boot
}

# At the boot after it (lib/preinit/79_move_config, 80_mount_root): over the new image, file by file.
restore_config() {
	local disk boot
	disk="$(disk_device)" || return 0
	boot="$(partition_device "$disk" 1)" || return 0
	# A look at the folder's entries instead of a mount at every boot: by its short name, whose first letter goes when a
	# file is deleted.
	head -c 1048576 "$boot" | grep -q "SYSUPG~1TGZ" || return 0
	modprobe -q -a loop vfat nls_cp437 nls_ascii nls_iso8859-1
	mount_boot "$disk" || return 0
	[ ! -f "$BOOT/$KEPT" ] || mv -f "$BOOT/$KEPT" /
	umount_boot
	[ -f "/$KEPT" ] || return 0
	echo "- config restore -" >/dev/kmsg
	mv "/$KEPT" /tmp/
	tar -C / -xzf "/tmp/$KEPT"
	rm -f "/tmp/$KEPT"
	sync
}
