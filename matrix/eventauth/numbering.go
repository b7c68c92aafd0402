package eventauth

import (
	"strconv"

	"hanok/matrix/roomversion"
)

// A rule names one numbered rule of the specification. The same rule has
// different numbers in different room versions; number works them out from
// the order below and from which rules a version has.
type rule uint8

const (
	ruleCreate rule = iota
	createPrevEvents
	createRoomDomain
	createRoomID
	createVersion
	createCreator
	createAdditionalCreators
	createAllow

	ruleRoomID

	ruleAuthEvents
	authDuplicate
	authNotSelected
	authRejected
	authNoCreate
	authOtherRoom

	ruleFederate

	ruleAliases
	aliasesStateKey
	aliasesDomain
	aliasesAllow

	ruleMember
	memberFormat
	memberAuthorised
	memberAuthorisedSignature
	memberJoin
	joinCreator
	joinSender
	joinBanned
	joinInvited
	joinRestricted
	restrictedMember
	restrictedAuthoriser
	restrictedAllow
	joinPublic
	joinOtherwise
	memberInvite
	inviteThirdParty
	thirdPartyBanned
	thirdPartySigned
	thirdPartyProperties
	thirdPartyTarget
	thirdPartyToken
	thirdPartySender
	thirdPartySignature
	thirdPartyOtherwise
	inviteSender
	inviteTarget
	inviteLevel
	inviteOtherwise
	memberLeave
	leaveSelf
	leaveSender
	leaveUnban
	leaveKick
	leaveOtherwise
	memberBan
	banSender
	banLevel
	banOtherwise
	memberKnock
	knockJoinRule
	knockSender
	knockMembership
	knockOtherwise
	memberUnknown

	ruleJoined

	ruleThirdPartyInvite
	thirdPartyInviteLevel

	ruleRequiredLevel

	ruleUserStateKey

	rulePowerLevels
	levelsScalars
	levelsMaps
	levelsUsers
	levelsCreators
	levelsFirst
	levelsScalarChange
	scalarCurrent
	scalarNew
	levelsEventChange
	eventCurrent
	levelsEventAdd
	eventNew
	levelsUserChange
	userCurrent
	levelsUserAdd
	userNew
	levelsAllow

	ruleRedaction
	redactionLevel
	redactionDomain
	redactionOtherwise

	ruleAllow

	ruleCount
)

// noRule is the parent of the top-level rules.
const noRule = ruleCount

// place is where a rule stands: under which other rule, and in which versions
// (nil: all of them).
type place struct {
	parent rule
	in     func(*roomversion.Version) bool
}

// The condition that a rule depends on, beside those of its parent.
var places = [ruleCount]place{
	ruleCreate:               {noRule, nil},
	createPrevEvents:         {ruleCreate, nil},
	createRoomDomain:         {ruleCreate, roomIDHasDomain},
	createRoomID:             {ruleCreate, roomIDIsCreateHash},
	createVersion:            {ruleCreate, nil},
	createCreator:            {ruleCreate, explicitCreator},
	createAdditionalCreators: {ruleCreate, privilegedCreators},
	createAllow:              {ruleCreate, nil},

	ruleRoomID: {noRule, roomIDIsCreateHash},

	ruleAuthEvents:  {noRule, nil},
	authDuplicate:   {ruleAuthEvents, nil},
	authNotSelected: {ruleAuthEvents, nil},
	authRejected:    {ruleAuthEvents, nil},
	authNoCreate:    {ruleAuthEvents, roomIDHasDomain},
	authOtherRoom:   {ruleAuthEvents, nil},

	ruleFederate: {noRule, nil},

	ruleAliases:     {noRule, aliasesAuth},
	aliasesStateKey: {ruleAliases, nil},
	aliasesDomain:   {ruleAliases, nil},
	aliasesAllow:    {ruleAliases, nil},

	ruleMember:                {noRule, nil},
	memberFormat:              {ruleMember, nil},
	memberAuthorised:          {ruleMember, restricted},
	memberAuthorisedSignature: {memberAuthorised, nil},
	memberJoin:                {ruleMember, nil},
	joinCreator:               {memberJoin, nil},
	joinSender:                {memberJoin, nil},
	joinBanned:                {memberJoin, nil},
	joinInvited:               {memberJoin, nil},
	joinRestricted:            {memberJoin, restricted},
	restrictedMember:          {joinRestricted, nil},
	restrictedAuthoriser:      {joinRestricted, nil},
	restrictedAllow:           {joinRestricted, nil},
	joinPublic:                {memberJoin, nil},
	joinOtherwise:             {memberJoin, nil},
	memberInvite:              {ruleMember, nil},
	inviteThirdParty:          {memberInvite, nil},
	thirdPartyBanned:          {inviteThirdParty, nil},
	thirdPartySigned:          {inviteThirdParty, nil},
	thirdPartyProperties:      {inviteThirdParty, nil},
	thirdPartyTarget:          {inviteThirdParty, nil},
	thirdPartyToken:           {inviteThirdParty, nil},
	thirdPartySender:          {inviteThirdParty, nil},
	thirdPartySignature:       {inviteThirdParty, nil},
	thirdPartyOtherwise:       {inviteThirdParty, nil},
	inviteSender:              {memberInvite, nil},
	inviteTarget:              {memberInvite, nil},
	inviteLevel:               {memberInvite, nil},
	inviteOtherwise:           {memberInvite, nil},
	memberLeave:               {ruleMember, nil},
	leaveSelf:                 {memberLeave, nil},
	leaveSender:               {memberLeave, nil},
	leaveUnban:                {memberLeave, nil},
	leaveKick:                 {memberLeave, nil},
	leaveOtherwise:            {memberLeave, nil},
	memberBan:                 {ruleMember, nil},
	banSender:                 {memberBan, nil},
	banLevel:                  {memberBan, nil},
	banOtherwise:              {memberBan, nil},
	memberKnock:               {ruleMember, knock},
	knockJoinRule:             {memberKnock, nil},
	knockSender:               {memberKnock, nil},
	knockMembership:           {memberKnock, nil},
	knockOtherwise:            {memberKnock, nil},
	memberUnknown:             {ruleMember, nil},

	ruleJoined: {noRule, nil},

	ruleThirdPartyInvite:  {noRule, nil},
	thirdPartyInviteLevel: {ruleThirdPartyInvite, nil},

	ruleRequiredLevel: {noRule, nil},

	ruleUserStateKey: {noRule, nil},

	rulePowerLevels:    {noRule, nil},
	levelsScalars:      {rulePowerLevels, integerLevels},
	levelsMaps:         {rulePowerLevels, integerLevels},
	levelsUsers:        {rulePowerLevels, nil},
	levelsCreators:     {rulePowerLevels, privilegedCreators},
	levelsFirst:        {rulePowerLevels, nil},
	levelsScalarChange: {rulePowerLevels, nil},
	scalarCurrent:      {levelsScalarChange, nil},
	scalarNew:          {levelsScalarChange, nil},
	levelsEventChange:  {rulePowerLevels, nil},
	eventCurrent:       {levelsEventChange, nil},
	levelsEventAdd:     {rulePowerLevels, nil},
	eventNew:           {levelsEventAdd, nil},
	levelsUserChange:   {rulePowerLevels, nil},
	userCurrent:        {levelsUserChange, nil},
	levelsUserAdd:      {rulePowerLevels, nil},
	userNew:            {levelsUserAdd, nil},
	levelsAllow:        {rulePowerLevels, nil},

	ruleRedaction:      {noRule, redactionAuth},
	redactionLevel:     {ruleRedaction, nil},
	redactionDomain:    {ruleRedaction, nil},
	redactionOtherwise: {ruleRedaction, nil},

	ruleAllow: {noRule, nil},
}

func roomIDIsCreateHash(v *roomversion.Version) bool { return v.RoomIDIsCreateHash }
func roomIDHasDomain(v *roomversion.Version) bool    { return !v.RoomIDIsCreateHash }
func explicitCreator(v *roomversion.Version) bool    { return !v.ImplicitCreator }
func privilegedCreators(v *roomversion.Version) bool { return v.PrivilegedCreators }
func aliasesAuth(v *roomversion.Version) bool        { return v.AliasesAuth }
func restricted(v *roomversion.Version) bool         { return v.Restricted }
func knock(v *roomversion.Version) bool              { return v.Knock }
func integerLevels(v *roomversion.Version) bool      { return v.IntegerPowerLevels }
func redactionAuth(v *roomversion.Version) bool      { return v.RedactionAuth }

// exists reports whether a version has the rule.
func (r rule) exists(v *roomversion.Version) bool {
	for ; r != noRule; r = places[r].parent {
		if in := places[r].in; in != nil && !in(v) {
			return false
		}
	}
	return true
}

// number is the rule's number in a version, as the rendered page counts:
// "5.3.5.2".
func (r rule) number(v *roomversion.Version) string {
	parent := places[r].parent
	n := 1
	for sibling := range r {
		if places[sibling].parent == parent && sibling.exists(v) {
			n++
		}
	}
	if parent == noRule {
		return strconv.Itoa(n)
	}
	return parent.number(v) + "." + strconv.Itoa(n)
}

// reject makes the Rejection for breaking a rule.
func reject(v *roomversion.Version, r rule, reason string) *Rejection {
	malformed := r == levelsScalars || r == levelsMaps || r == levelsUsers || r == levelsCreators
	return &Rejection{Rule: "rooms/v" + string(v.ID) + " " + r.number(v), Reason: reason, Malformed: malformed}
}
