// The prefilter: drops packets by their source address, as early as the kernel lets anybody see them.
//
// It looks through VLAN tags and at the fixed part of the IP header alone: where the source address stands depends on no
// option, extension header or fragment offset. What it does not understand passes; the kernel understands it, or drops
// it itself.
//
// Compiled by bcc (whose dialect it does not need) into instructions that fit every kernel and every machine of one byte
// order: all structures are of the kernel's stable interface (uapi). The maps are made by the loader: here each is a
// number that the loader puts a descriptor in the place of. netloom.kernel.prefilter.maps describes them.
//
// MULTI_BUFFER: for kernels from 5.18 on. Frames may be larger than a page then.

typedef unsigned char u8_t;
typedef unsigned short u16_t;
typedef unsigned int u32_t;
typedef unsigned long long u64_t;

// <linux/bpf.h>
struct xdp_md {
	u32_t data;
	u32_t data_end;
	u32_t data_meta;
	u32_t ingress_ifindex;
	u32_t rx_queue_index;
	u32_t egress_ifindex;
};

enum { XDP_DROP = 1, XDP_PASS = 2 };

// What bcc puts behind this file makes a section of the licence by it.
#define BCC_SEC(name) __attribute__((section(name), used))

u64_t pseudo(u64_t kind, u64_t number) asm("llvm.bpf.pseudo");

#define INLINE static inline __attribute__((always_inline))

// enum bpf_func_id
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
#ifdef MULTI_BUFFER
static u64_t (*whole_length)(struct xdp_md *context) = (void *)188;
static long (*load_bytes)(struct xdp_md *context, u32_t offset, void *buffer, u32_t length) = (void *)189;
#endif

#define MAP(number) ((void *)pseudo(1, number))

// Which of the sets of rules is this program's: the loader puts its number in the place of this one.
#define OWN_SET ((u32_t)pseudo(0, SET))

// Bytes. A frame that has more tags than this is no network's: the kernel itself looks through any number of tags of VLAN
// 0, so that such a frame would get past this program to the address that it is to protect. It is dropped.
#define ETHERNET 14
#define TAG 4
#define MOST_TAGS 8

#define ALLOW (1u << 31)
#define SLOT 0xffffu

// In network order, as they lie in the frame.
#define ORDERED(number) __builtin_bswap16(number)

struct key4 {
	u32_t length;
	u8_t address[4];
};

struct key6 {
	u32_t length;
	u8_t address[16];
};

struct count {
	u64_t packets;
	u64_t bytes;
};

// `size` bytes of the frame at `offset`, or 0 where it is shorter. Almost always they are where the program may look by
// itself; a driver may also have put the end of the headers into another buffer of the frame: they are copied then.
INLINE const void *look(struct xdp_md *context, u32_t offset, u32_t size, void *copy)
{
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;

	if (data + offset + size <= end)
		return data + offset;
#ifdef MULTI_BUFFER
	if (!load_bytes(context, offset, copy, size))
		return copy;
#endif
	return 0;
}

INLINE int drop(struct xdp_md *context, u32_t slot)
{
	struct count *count = map_lookup(MAP(COUNTERS), &slot);

	if (count) {
		count->packets += 1;
#ifdef MULTI_BUFFER
		count->bytes += whole_length(context);
#else
		count->bytes += context->data_end - context->data;
#endif
	}
	return XDP_DROP;
}

INLINE int judge(struct xdp_md *context, void *tries, const void *key)
{
	u32_t set = OWN_SET;
	void *trie = map_lookup(tries, &set);
	u32_t *entry = trie ? map_lookup(trie, key) : 0;

	if (!entry || *entry & ALLOW)
		return XDP_PASS;
	return drop(context, *entry & SLOT);
}

INLINE int judge4(struct xdp_md *context, u32_t offset)
{
	u32_t copy[5];
	const u8_t *header = look(context, offset, sizeof(copy), copy);
	struct key4 key = {.length = 32};

	if (!header || header[0] >> 4 != 4)
		return XDP_PASS;
	__builtin_memcpy(key.address, header + 12, sizeof(key.address));
	return judge(context, MAP(TRIES4), &key);
}

INLINE int judge6(struct xdp_md *context, u32_t offset)
{
	u32_t copy[10];
	const u8_t *header = look(context, offset, sizeof(copy), copy);
	struct key6 key = {.length = 128};

	if (!header || header[0] >> 4 != 6)
		return XDP_PASS;
	__builtin_memcpy(key.address, header + 8, sizeof(key.address));
	return judge(context, MAP(TRIES6), &key);
}

INLINE int is_tag(u16_t type)
{
	return type == ORDERED(0x8100) || type == ORDERED(0x88a8) || type == ORDERED(0x9100);
}

int netloom_drop(struct xdp_md *context)
{
	u32_t offset = ETHERNET;
	u16_t copy;
	const u16_t *type = look(context, ETHERNET - 2, sizeof(copy), &copy);

	if (!type)
		return XDP_PASS;
#pragma unroll
	for (int tags = 0; tags < MOST_TAGS; tags++) {
		if (!is_tag(*type))
			break;
		offset += TAG;
		type = look(context, offset - 2, sizeof(copy), &copy);
		if (!type)
			return XDP_PASS;
	}
	if (*type == ORDERED(0x0800))
		return judge4(context, offset);
	if (*type == ORDERED(0x86dd))
		return judge6(context, offset);
	return is_tag(*type) ? drop(context, OVERTAGGED) : XDP_PASS;
}
