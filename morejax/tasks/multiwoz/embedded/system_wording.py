"""What the agents of the embedded corpus reply: templates by act (see `phrase` for their syntax)."""

from __future__ import annotations

Templates = tuple[str, ...]

OPTIONAL_LEAD: Templates = (
    "", "", "", "certainly. ", "of course. ", "with pleasure. ", "happy to assist. ", "no problem. ",
    "let me see. ", "one moment. ", "absolutely. ", "understood. ", "right away. ", "gladly. ", "noted. ",
    "all right. ",
)  # fmt: skip

OFFER: Templates = (
    "{name} is {what}[ that guests adore| with a fine reputation|].",
    "I [can recommend|suggest|propose] {name}, {what}.",
    "how about {name}? it is {what}.",
    "you [might enjoy|could try|may like] {name}, {what}.",
    "my [favourite|pick|tip] is {name}, {what}.",
    "{name} [fits|matches] your [wishes|description]: it is {what}.",
    "may I point you to {name}? that is {what}.",
    "have a look at {name}, {what}.",
    "there is {name}, {what} [worth a detour|with friendly staff|loved by locals].",
    "{name} would suit you [nicely|perfectly|well], it is {what}.",
    "locals [praise|swear by|rave about] {name}, {what}.",
    "visitors keep returning to {name}, {what}.",
)
OFFER_COUNTED: Templates = (
    "[we have|I see|I found] {choice} [places|options] like that, and {name} stands out.",
    "there are {choice} [candidates|possibilities]. {name} [is a safe bet|gets the warmest reviews].",
    "out of {choice} [results|listings] I would [choose|single out] {name}.",
    "{choice} of them [qualify|come up]; {name} is the [most popular|nearest] one.",
    "my [register|directory|guide] shows {choice} entries, among them {name}.",
    "{choice} [addresses|venues] [meet|satisfy] that, for instance {name}.",
    "we list {choice} such places, {name} being [a classic|quite special].",
    "you can choose between {choice}, though {name} is hard to beat.",
    "the search returned {choice}, I would begin with {name}.",
)
OFFER_ONLY: Templates = (
    "[only|exactly|just] {choice} [place|venue] [fits|qualifies]: {name}.",
    "there is {choice} [match|hit], {name}.",
    "{choice} [candidate|result] remains, namely {name}.",
    "that leaves {choice} option, {name}.",
    "I found {choice} [entry|listing] like that, called {name}.",
    "your [wishes|criteria] lead to {choice} spot: {name}.",
    "{name} is the {choice} [answer|address] to that.",
    "we know of {choice} such place, it is {name}.",
)
OFFER_NAMELESS: Templates = (
    "[yes|sure], we have {choice} [fitting|suitable] {nouns}.",
    "I [picked|took] one out of {choice} for you, [a charming spot|a solid choice].",
    "there is a good {noun} among the {choice} [I see|on file].",
    "that should work, {choice} {nouns} [came up|are listed].",
    "I have found you something, one of {choice} in my [files|system].",
    "good news, {choice} [of them fit|fit|match] and I selected one.",
    "one of the {choice} [results|hits] looks right for you.",
    "I chose a popular {noun} for you from {choice} possibilities.",
)
OFFER_BOOKING: Templates = (
    "[shall|should|may] I [reserve|book|arrange] it[ for you|]?",
    "[would|do] you [like|want|care for] a reservation?",
    "do you wish to [book|secure a place]?",
    "I could [make|organise] a booking, if you [like|wish].",
    "say the word and I will reserve.",
    "is a booking [needed|required]?",
    "want me to hold a place for you?",
    "a reservation is [quickly made|easily arranged], interested?",
)
OFFER_DETAILS: Templates = (
    "[would|do] you [like|want] [more details|the particulars]?",
    "[shall|may] I [tell|give] you [anything more|further details]?",
    "do you need [directions|contact details]?",
    "ask me [whatever you like|anything] about it.",
    "what else [would you like|do you want] to know about it?",
    "does that [appeal|sound good] to you?",
    "is that to your [taste|liking]?",
    "how does that [strike you|sound]?",
)
COUNT: Templates = (
    "[I have|there are|we have] {choice} [of those|like that].",
    "{choice} [places|options] come to mind.",
    "that gives {choice} [results|matches].",
    "my list [holds|has] {choice} of them.",
    "right now I count {choice}.",
    "there is a choice of {choice}.",
    "I am looking at {choice} [entries|hits].",
    "the town offers {choice} of these.",
)
REQUEST: dict[str, Templates] = {
    "food": (
        "what [kind|type|sort] of [food|cuisine] do you [fancy|prefer]?",
        "which cuisine are you [hungry for|in the mood for]?",
        "is there a [dish|cooking style] you have in mind?",
        "what [would you like|are you going] to eat?",
        "any particular flavours?",
    ),
    "pricerange": (
        "what is your [budget|price range]?",
        "how much [may it cost|would you like to spend]?",
        "[cheap, moderate or expensive|should it be cheap, moderate or expensive]?",
        "do you have a price [level|bracket] in mind?",
        "is money [a concern|an issue]?",
    ),
    "area": (
        "which [part of town|district|area] [suits you|do you prefer]?",
        "where [in town|in Wrenford] should it be?",
        "is any [area|quarter] [better|more convenient] for you?",
        "do you have a [location|neighbourhood] in mind?",
        "should I look near the centre or further out?",
    ),
    "type": (
        "what [kind|type|sort] [are you thinking of|do you want]?",
        "do you have a [type|category] in mind?",
        "which type [appeals to you|would you enjoy]?",
        "anything [special|specific] you are drawn to?",
        "can you narrow down the type?",
    ),
    "stars": (
        "how many stars [should it have|do you expect]?",
        "is a certain star rating [important|required]?",
        "what star rating [do you want|are you after]?",
        "do stars matter to you?",
        "which standard of comfort, in stars?",
    ),
    "internet": (
        "do you [need|require] [internet|wifi]?",
        "is wifi a must?",
        "should there be internet?",
        "will you be going online there?",
    ),
    "parking": (
        "do you [need|require] parking?",
        "will you [bring|come with] a car?",
        "is parking [important|needed]?",
        "should there be somewhere to park?",
    ),
    "day": (
        "[which|what] day [are you travelling|will you travel]?",
        "when do you [wish|plan] to travel, which day?",
        "on which day of the week?",
        "what day should I check?",
        "for which day is the journey?",
    ),
    "leaveat": (
        "[what time|when] would you like to [set off|get going]?",
        "is there a time you [must|want to] leave or arrive?",
        "around what hour shall we [schedule|plan] it?",
        "do you have a time in mind?",
        "how early can you depart, or when must you arrive?",
    ),
    "departure": (
        "where [does the journey start|will you be starting]?",
        "from which [place|station] do you [leave|set out]?",
        "what is the starting point?",
        "where shall we pick you up?",
        "where are you coming from?",
    ),
    "destination": (
        "where [are you headed|would you like to go]?",
        "what is your destination?",
        "which [place|town] are you going to?",
        "where does the trip end?",
        "to which [place|stop], please?",
    ),
    "bookpeople": (
        "how many [people|persons|guests] [are coming|will there be|is it for]?",
        "for how many [people|guests]?",
        "what is the size of your [party|group]?",
        "how large is the company?",
        "who is joining, how many of you?",
    ),
    "bookday": (
        "[which|what] day [shall I note|do you have in mind]?",
        "on which day [would you like|do you plan] to come?",
        "when are you arriving, which weekday?",
        "for which day?",
        "what day suits your plans?",
    ),
    "booktime": (
        "at what [time|hour] [will you come|should the table be ready]?",
        "what time [shall I put down|works for you]?",
        "when would you like to [eat|sit down]?",
        "for what time?",
        "which hour do you prefer?",
    ),
    "bookstay": (
        "how many nights [will you stay|do you need]?",
        "for how [long|many nights]?",
        "how long is your stay?",
        "what is the length of the stay?",
        "when will you check out, after how many nights?",
    ),
}
NO_OFFER: Templates = (
    "[sorry|I am sorry], [there is|I know of|we have] no {what}.",
    "unfortunately [nothing turned up|my search came back empty] for {what}.",
    "I [regret|am afraid] there [is not any|are no places] like that: no {what}.",
    "[alas|sadly], {what} is not to be found in Wrenford.",
    "{what} [does not exist|is missing] in our [listings|town], I fear.",
    "my apologies, I cannot [find|locate] {what}.",
    "no luck with {what}, [sorry|regrettably].",
    "I looked everywhere, but {what} [is unavailable|was nowhere to be seen].",
)
SUGGEST_RELAXING: Templates = (
    "[would|could] you [accept|consider] something else?",
    "shall we try [another|a different] {topic}?",
    "is there [an alternative|a second choice]?",
    "maybe change the {topic}?",
    "what else could I look up?",
    "would a different {topic} be acceptable?",
    "do you want to loosen your wishes a little?",
    "perhaps pick some other {topic}?",
)
ANSWER: dict[str, Templates] = {
    "phone": (
        "the [phone|telephone] number is {phone}",
        "you can [call|ring|reach] them [on|at] {phone}",
        "the line to [dial|ring] is {phone}",
        "their number is {phone}",
        "the line for questions is {phone}",
    ),
    "address": (
        "the address is {address}",
        "you will find it at {address}",
        "it [stands|is located|is situated] at {address}",
        "it [awaits|welcomes] you at {address}",
        "it sits on {address}",
    ),
    "postcode": (
        "the [postcode|postal code] is {postcode}",
        "its postcode [reads|is] {postcode}",
        "for your navigation, the code is {postcode}",
        "the code for the post is {postcode}",
        "letters go to {postcode}",
    ),
    "trainid": (
        "the train [id|number] is {trainid}",
        "the train to look for is {trainid}",
        "it runs as {trainid}",
        "{trainid} is the one to board",
    ),
    "price": (
        "[a ticket|each ticket] costs {price}",
        "the fare is {price}",
        "you pay {price} [per head|each]",
        "it comes to {price} per seat",
    ),
    "duration": (
        "the [journey|ride] takes {duration}",
        "you will be on board for {duration}",
        "it lasts {duration}",
        "travel time is {duration}",
    ),
    "entrancefee": (
        "[admission|entry] is {entrancefee}",
        "the entrance fee is {entrancefee}",
        "they charge {entrancefee} at the door",
        "getting in is {entrancefee}",
    ),
    "openhours": (
        "it opens from {openhours}",
        "the hours are {openhours}",
        "doors are open {openhours}",
        "you may enter from {openhours}",
    ),
    "area": (
        "it is in the {area}",
        "that is the {area} of town",
        "you go to the {area}",
        "it lies in the {area}",
    ),
    "pricerange": (
        "it is {pricerange}",
        "the prices are {pricerange}",
        "the bill will be {pricerange}",
        "the price range is {pricerange}",
    ),
    "stars": (
        "it has {stars} stars",
        "they hold {stars} stars",
        "it is rated {stars} stars",
        "it carries {stars} stars",
    ),
    "food": (
        "they [cook|serve] {food} food",
        "the kitchen is {food}",
        "the menu is {food}",
        "chefs prepare {food} dishes",
    ),
    "leaveat": (
        "it [leaves|departs|pulls out] at {leaveat}",
        "departure is at {leaveat}",
        "you board at {leaveat}",
    ),
    "arriveby": (
        "it [arrives|gets in] at {arriveby}",
        "you are there by {arriveby}",
        "arrival is at {arriveby}",
    ),
}
ANSWER_SUBJECT: Templates = (
    "for {name}, ", "about {name}: ", "regarding {name}, ", "here is what I have on {name}: ",
    "{name}, then: ",
)  # fmt: skip
ANSWER_LEAD: Templates = (
    "", "", "", "", "here you go: ", "sure, ", "let me check, ", "yes, ", "as you asked, ",
    "from my records, ",
)  # fmt: skip
BOOKED: Templates = (
    "[done|all done|all set], {name} expects you {terms}.",
    "your [reservation|booking] at {name} [is confirmed|went through].",
    "I [reserved|booked] {name} {terms}.",
    "{name} [has|is holding] a place for you {terms}.",
    "[success|splendid], you are booked in {terms}.",
    "the booking [is complete|worked out] {terms}.",
    "everything is arranged {terms}.",
    "[consider it done|that is settled], {name} awaits you.",
    "I put you down at {name} {terms}.",
    "they kept a place for you {terms}.",
)
BOOKED_TRAIN: Templates = (
    "[done|all set], your [seats|tickets] are [reserved|secured].",
    "I booked you on {trainid}.",
    "[tickets|places] {terms} are confirmed.",
    "train {trainid} now has you on its passenger list.",
    "the booking {terms} [succeeded|is complete].",
    "your seats {terms} await you, payable at the station.",
    "I bought the tickets {terms}, the total is due on board.",
    "everything is arranged for your ride.",
    "you are now travelling on {trainid} {terms}.",
)
REFERENCE: Templates = (
    "the reference number is {ref}.",
    "your [reference|confirmation] is {ref}.",
    "reference: {ref}.",
    "please [note|keep|remember] the code {ref}.",
    "[quote|show|mention] {ref} on arrival.",
    "it is filed under {ref}.",
    "you will need the number {ref}.",
    "here is the reference, {ref}.",
    "they will ask for {ref} at the desk.",
)
NO_BOOK: Templates = (
    "[sorry|I am sorry], {name} is [full|booked out] {terms}.",
    "unfortunately {terms} is [not possible|taken].",
    "{name} has nothing free {terms}.",
    "the booking {terms} [failed|was declined].",
    "regrettably all places are gone {terms}.",
    "they turned us down {terms}, it is too busy.",
    "no vacancy {terms}, I am afraid.",
    "that slot {terms} is [occupied|gone] already.",
)
OTHER_SLOT: Templates = (
    "[could|can] you [come|do it] [another time|at another date]?",
    "[shall|should] I try [something else|another slot]?",
    "would a [different|shorter or earlier] slot [work|be possible]?",
    "do you want to [change|adjust] it?",
    "is there [any leeway|some flexibility] in your plans?",
    "what other option shall I attempt?",
    "may I check an alternative?",
    "when else might you manage?",
)
OFFER_TRAIN: Templates = (
    "train {trainid} leaves at {leaveat} and arrives at {arriveby}.",
    "[there is|I found|I suggest] {trainid}, [departing|leaving] at {leaveat}.",
    "{trainid} [gets you there|arrives] by {arriveby}.",
    "the best connection is {trainid}, which departs at {leaveat} on {day}.",
    "you could [take|catch|board] {trainid} at {leaveat}, arriving {arriveby}.",
    "of {choice} trains, {trainid} at {leaveat} suits you best.",
    "{choice} trains run then, {trainid} pulls in at {arriveby}.",
    "{trainid} travels from {departure} to {destination} at {leaveat}.",
    "I [would|can] put you on {trainid}, it leaves {departure} at {leaveat}.",
    "on {day} the {trainid} reaches {destination} at {arriveby}.",
)
OFFER_TRAIN_NAMELESS: Templates = (
    "there is a train leaving at {leaveat} and arriving at {arriveby}.",
    "[yes|sure], one departs at {leaveat} on {day}.",
    "{choice} trains run then, one of them gets in at {arriveby}.",
    "a direct train reaches {destination} at {arriveby}.",
    "you could travel at {leaveat}, arriving {arriveby}.",
    "the timetable shows a departure at {leaveat}.",
    "a fast one leaves {departure} at {leaveat}.",
    "one pulls out at {leaveat}, [comfortable and direct|seldom late].",
)
BOOKED_TAXI: Templates = (
    "[your taxi|a cab] is [booked|on its way]: {car}.",
    "I ordered {car} for you.",
    "{car} will [collect you|be waiting].",
    "the driver [comes|arrives] in {car}.",
    "expect {car} at the door.",
    "[done|settled], look out for {car}.",
    "a chauffeur with {car} has accepted the ride.",
    "{car} is reserved for the trip.",
    "we send {car} to fetch you.",
)
TAXI_PHONE: Templates = (
    "the contact number is {phone}.",
    "[call|ring] {phone} if [anything comes up|you are late].",
    "the driver answers on {phone}.",
    "their phone is {phone}.",
    "reach the driver at {phone}.",
    "should it be delayed, dial {phone}.",
    "you may text {phone} any time.",
    "keep {phone} at hand.",
)
ANYTHING_ELSE: Templates = (
    "[anything|something] else I [can|could|may] do?",
    "how else can I [help|assist]?",
    "is there more on your list?",
    "do you [need|require] further [help|assistance]?",
    "may I be of service with something more?",
    "will that be enough?",
    "shall we look at another matter?",
    "what comes next?",
    "are you looking for anything besides that?",
)
GOODBYE: Templates = (
    "[you are welcome|my pleasure|glad to help]. [enjoy|have fun in] Wrenford!",
    "[thank you|thanks] for [calling|asking] the Wrenford desk. [goodbye|farewell].",
    "[have|wishing you] a [lovely|wonderful|pleasant] [day|stay|visit]!",
    "it was a [joy|delight] [assisting|serving] you. take care!",
    "[safe travels|bon voyage] and until next time!",
    "happy to have been [useful|of help]. bye now.",
    "do get in touch [again|any time]. [goodbye|so long]!",
    "enjoy your [trip|time here], and [come back soon|see you again].",
    "that was easy. have a [great|splendid] time!",
    "all the best for your [journey|holiday]!",
    "we hope you [like|love] our town. cheerio!",
    "[don't mention it|not at all]. have a good one!",
)
NOUNS: dict[str, Templates] = {
    "restaurant": ("restaurant", "place", "eatery", "bistro", "kitchen"),
    "hotel": ("place to stay", "house", "lodging", "accommodation"),
    "attraction": ("attraction", "sight", "place", "destination"),
}
PLURALS: dict[str, Templates] = {
    "restaurant": ("restaurants", "eateries", "dining places"),
    "hotel": ("lodgings", "places to stay", "houses"),
    "attraction": ("attractions", "sights", "outings"),
}
